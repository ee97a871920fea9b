"""Using a trained model: evaluation, scores of tokens, samples of text."""

from lmkit.inference.cache import Cache
from lmkit.inference.dynamic import Dynamic
from lmkit.inference.ensemble import Ensemble
from lmkit.inference.mc_dropout import MCDropout
from lmkit.inference.methods import Evaluation, Methods
from lmkit.inference.scoring import TokenScore
from lmkit.inference.temperature import Temperature
from lmkit.inference.text import Text
from lmkit.inference.trained import TrainedModel
from lmkit.inference.tuning import tuned

__all__ = [
    "Cache",
    "Dynamic",
    "Ensemble",
    "Evaluation",
    "MCDropout",
    "Methods",
    "Temperature",
    "Text",
    "TokenScore",
    "TrainedModel",
    "tuned",
]
