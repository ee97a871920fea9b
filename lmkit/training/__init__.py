"""Training: the LightningModule, and the way from a checked config to a run that has ended."""

from lmkit.training.task import Task

__all__ = ["Task"]
