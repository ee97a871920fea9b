"""The machine, its processes, files and secrets: nothing here knows of language models."""
