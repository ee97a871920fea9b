"""The sources of documents by split: their base class, and all that lmkit has."""

from lmkit.corpus.enwik8 import Enwik8
from lmkit.corpus.files import Csv, Files, Jsonl, Parquet, WikiText
from lmkit.corpus.huggingface import HuggingFace
from lmkit.corpus.memory_probe import MemoryProbe
from lmkit.corpus.penn_treebank import PennTreebank
from lmkit.corpus.pydocs import Pydocs
from lmkit.corpus.shakespeare import TinyShakespeare
from lmkit.corpus.source import Corpus, Document, Source

__all__ = [
    "Corpus",
    "Csv",
    "Document",
    "Enwik8",
    "Files",
    "HuggingFace",
    "Jsonl",
    "MemoryProbe",
    "Parquet",
    "PennTreebank",
    "Pydocs",
    "Source",
    "TinyShakespeare",
    "WikiText",
]
