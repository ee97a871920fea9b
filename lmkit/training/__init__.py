"""Training: from a checked config to a finished run."""
