"""The sources of documents by split: their base class, and all that lmkit has."""

from lmkit.corpus.files import Csv, Files, Jsonl, Parquet, WikiText
from lmkit.corpus.huggingface import HuggingFace
from lmkit.corpus.memory_probe import MemoryProbe
from lmkit.corpus.pydocs import Pydocs
from lmkit.corpus.source import Corpus, Document, Source

__all__ = [
    "Corpus",
    "Csv",
    "Document",
    "Files",
    "HuggingFace",
    "Jsonl",
    "MemoryProbe",
    "Parquet",
    "Pydocs",
    "Source",
    "WikiText",
]
