"""The commands, a module each: it reads the command's arguments, calls others, and prints."""
