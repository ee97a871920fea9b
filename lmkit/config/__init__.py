"""Command line and YAML to one checked config, every mistake told at once."""
