"""From command line and YAML files to one checked config; all mistakes are reported at once."""
