"""Using a trained model: evaluation, scores of tokens, samples of text."""

from lmkit.inference.scoring import TokenScore
from lmkit.inference.text import Text
from lmkit.inference.trained import TrainedModel

__all__ = ["Text", "TokenScore", "TrainedModel"]
