"""The loggers of a training: metrics.jsonl, and beside it any of Lightning's loggers."""

from lmkit.training.loggers.jsonl import JsonlLogger
from lmkit.training.loggers.wandb import WandbLogger

__all__ = ["JsonlLogger", "WandbLogger"]
