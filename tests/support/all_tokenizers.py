"""A small tokenizer of every kind, and tiny models of random weights that read with them."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import tokenizers
import torch
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from lmkit.head import FullSoftmax
from lmkit.inference import TrainedModel
from lmkit.model import LSTM
from lmkit.tokenizer import ByteLevelBPE, Bytes, Characters, Pretrained, Tokenizer, Word
from lmkit.tokenizer.base import ByteSurfaces, Flat

TEXTS = ["the cat sat on the mat. The dogs ran, and don't stop! naïve über <eos>\nthe end \n"] * 9
SPECIALS = ["<unk>", "<eos>"]
# Those of whose tokens some hold the space before a word.
WITH_SPACES = {"bytes", "characters", "bpe", "byte_level", "metaspace"}
WITHOUT_SPACES = {"word", "lower", "wordpiece", "end_marks", "phrases"}


def _pretrained(model, trainer, pre_tokenizer, decoder, normalizer=None) -> Tokenizer:
    library = tokenizers.Tokenizer(model)
    library.pre_tokenizer = pre_tokenizer
    library.decoder = decoder
    if normalizer is not None:
        library.normalizer = normalizer
    library.train_from_iterator(TEXTS, trainer)
    with TemporaryDirectory() as place:
        library.save(str(Path(place) / "tokenizer.json"))
        return Pretrained(place)


def _made() -> dict[str, Tokenizer]:
    known = {"special_tokens": SPECIALS, "show_progress": False}
    marks = {"end_of_word_suffix": "</w>"}
    folded = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    return {
        "byte_level": _pretrained(
            models.BPE(),
            trainers.BpeTrainer(vocab_size=300, **known),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
            decoders.ByteLevel(),
            normalizers.NFC(),
        ),
        "metaspace": _pretrained(
            models.Unigram(),
            trainers.UnigramTrainer(vocab_size=60, unk_token="<unk>", **known),
            pre_tokenizers.Metaspace(),
            decoders.Metaspace(),
            folded,
        ),
        "wordpiece": _pretrained(
            models.WordPiece(unk_token="<unk>"),
            trainers.WordPieceTrainer(vocab_size=60, **known),
            pre_tokenizers.BertPreTokenizer(),
            decoders.WordPiece(),
            normalizers.BertNormalizer(),
        ),
        "end_marks": _pretrained(
            models.BPE(unk_token="<unk>", **marks),
            trainers.BpeTrainer(vocab_size=60, **marks, **known),
            pre_tokenizers.WhitespaceSplit(),
            decoders.BPEDecoder(),
        ),
        "phrases": _pretrained(  # some of its tokens are several words
            models.BPE(unk_token="<unk>"),
            trainers.BpeTrainer(vocab_size=90, **known),
            pre_tokenizers.Metaspace(split=False),
            decoders.Metaspace(),
        ),
    }


@cache
def all_tokenizers() -> dict[str, Tokenizer]:
    """By name, each trained on TEXTS."""
    own: dict[str, Tokenizer] = {
        "word": Word(),
        "lower": Word(lower=True, vocabulary_size=9),
        "characters": Characters(vocabulary_size=20),
        "bytes": Bytes(),
        "bpe": ByteLevelBPE(vocabulary_size=290),
    }
    for tokenizer in own.values():
        tokenizer.train(TEXTS)
    return own | _made()


@cache
def tiny_model(name: str) -> TrainedModel:
    """A model of random weights, far from uniform, that reads with one of all tokenizers."""
    return random_model(all_tokenizers()[name])


def random_model(tokenizer: Tokenizer, protocol: str = "document") -> TrainedModel:
    torch.manual_seed(3)
    size = tokenizer.vocabulary_size
    model = LSTM(size, embedding_size=8, hidden_size=8, num_layers=1)
    head = FullSoftmax(8, size, model.embedding)
    for parameter in (*model.parameters(), *head.parameters()):
        parameter.data.uniform_(-1, 1)
    return TrainedModel(model, head, tokenizer, protocol=protocol)


class Letters(ByteSurfaces):
    """`a` and `b`, each alone or with the space before it."""

    trainable = False
    unk_id = None
    eos_id = 4
    vocabulary_size = 5
    surfaces = [b"a", b"b", b" a", b" b", b""]  # noqa: RUF012

    def train(self, texts):
        raise NotImplementedError

    def _flat(self, texts):
        import re

        import numpy as np

        found = [re.findall(" ?[ab]", text) for text in texts]
        ids = [self.surfaces.index(each.encode()) for row in found for each in row]
        counts = np.array([len(row) for row in found])
        return Flat(np.array(ids, np.uint32), counts, np.empty(0, np.int64), 0)

    def settings(self):
        return {}

    def _state(self):
        return {}

    @classmethod
    def _restore(cls, state):
        return cls()
