"""A trained model at work: evaluation, scores, samples."""

from lmkit.inference.scoring import TokenScore
from lmkit.inference.text import Text
from lmkit.inference.trained import TrainedModel

__all__ = ["Text", "TokenScore", "TrainedModel"]
