"""Config-driven experiments with recurrent language models."""
