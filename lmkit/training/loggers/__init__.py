"""Where the rows of a training go: metrics.jsonl, and any of Lightning's loggers beside it."""

from lmkit.training.loggers.jsonl import JsonlLogger
from lmkit.training.loggers.wandb import WandbLogger

__all__ = ["JsonlLogger", "WandbLogger"]
