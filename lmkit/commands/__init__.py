"""One file a command: it reads its arguments, calls, and prints."""
