"""Language models that other programs have trained: read without running anything of theirs."""

from lmkit.foreign.conversion import settings, weights
from lmkit.foreign.parameters import Parameters, collect, identify
from lmkit.foreign.unpickler import read
from lmkit.foreign.vocabulary import read_vocabulary, word_tokenizer

__all__ = [
    "Parameters",
    "collect",
    "identify",
    "read",
    "read_vocabulary",
    "settings",
    "weights",
    "word_tokenizer",
]
