"""A checked config to a run that has ended."""
