"""N-grams of token ids: counted, estimated by modified Kneser-Ney, and held in sorted tables."""

from lmkit.ngrams.counts import Level, counted
from lmkit.ngrams.kneser_ney import FALLBACK, Discounts, estimated
from lmkit.ngrams.symbols import END, START, Symbols, read_symbols
from lmkit.ngrams.tables import Tables

__all__ = [
    "END",
    "FALLBACK",
    "START",
    "Discounts",
    "Level",
    "Symbols",
    "Tables",
    "counted",
    "estimated",
    "read_symbols",
]
