"""The tokenizers: from documents to token ids and back, and loading a saved one."""

from lmkit.tokenizer.base import AnyTokenizer, Encoded, Tokenizer
from lmkit.tokenizer.characters import Bytes, Characters
from lmkit.tokenizer.pattern import Pattern
from lmkit.tokenizer.saved import Stored, load_tokenizer, restored
from lmkit.tokenizer.sentencepiece import SentencePiece
from lmkit.tokenizer.subword import ByteLevelBPE, Pretrained
from lmkit.tokenizer.word import Word
from lmkit.tokenizer.word_list import WordList

__all__ = [
    "AnyTokenizer",
    "ByteLevelBPE",
    "Bytes",
    "Characters",
    "Encoded",
    "Pattern",
    "Pretrained",
    "SentencePiece",
    "Stored",
    "Tokenizer",
    "Word",
    "WordList",
    "load_tokenizer",
    "restored",
]
