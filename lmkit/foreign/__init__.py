"""Language models that other programs have trained: read without running anything of theirs."""

from lmkit.foreign.arpa import Arpa, is_arpa, read_arpa
from lmkit.foreign.conversion import settings, weights
from lmkit.foreign.exported import read_exported
from lmkit.foreign.file import read
from lmkit.foreign.parameters import Parameters, collect, identify
from lmkit.foreign.tokenizer import foreign_tokenizer, start_id
from lmkit.foreign.vocabulary import Unit, Vocabulary, held_vocabulary, read_vocabulary

__all__ = [
    "Arpa",
    "Parameters",
    "Unit",
    "Vocabulary",
    "collect",
    "foreign_tokenizer",
    "held_vocabulary",
    "identify",
    "is_arpa",
    "read",
    "read_arpa",
    "read_exported",
    "read_vocabulary",
    "settings",
    "start_id",
    "weights",
]
