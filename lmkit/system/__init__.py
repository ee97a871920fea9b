"""The machine, its processes, files and secrets; nothing here is about language models."""
