"""The heads: from hidden vectors to the negative log-likelihood of each token."""

from lmkit.head.adaptive import AdaptiveSoftmax
from lmkit.head.base import Head, Loss
from lmkit.head.full import FullSoftmax
from lmkit.head.mixture import MixtureOfSoftmaxes
from lmkit.head.ngram import NGramTables
from lmkit.head.projected import ProjectedSoftmax
from lmkit.head.sampled import SampledSoftmax

__all__ = [
    "AdaptiveSoftmax",
    "FullSoftmax",
    "Head",
    "Loss",
    "MixtureOfSoftmaxes",
    "NGramTables",
    "ProjectedSoftmax",
    "SampledSoftmax",
]
