"""The heads: from hidden vectors to the negative log-likelihood of each token."""

from lmkit.head.base import Head, Loss
from lmkit.head.full import FullSoftmax
from lmkit.head.ngram import NGramTables

__all__ = ["FullSoftmax", "Head", "Loss", "NGramTables"]
