"""Builds the main objects of a checked config: source, tokenizer, data, model and head."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lmkit.config.build import build
from lmkit.config.check import split_data
from lmkit.corpus import Corpus, Source
from lmkit.errors import UserError
from lmkit.head import Head
from lmkit.model import LanguageModel
from lmkit.store.preparation import NO_TOKENIZER
from lmkit.tokenizer import AnyTokenizer, Tokenizer
from lmkit.windows import DataModule


def make_source(config: Mapping[str, Any]) -> Corpus:
    """The source of documents or tokens."""
    source: Corpus = build("data", split_data(config["data"])[0])
    return source


def make_tokenizer(config: Mapping[str, Any]) -> Tokenizer | None:
    """The tokenizer, which may still have to be trained; None: the data's tokens come with one."""
    tokenizer: AnyTokenizer = build("tokenizer", config["tokenizer"])
    return tokenizer.resolved()


def text_and_tokenizer(config: Mapping[str, Any]) -> tuple[Source, Tokenizer]:
    """Source and tokenizer; raises UserError if the source has tokens instead of text."""
    source, tokenizer = make_source(config), make_tokenizer(config)
    if not isinstance(source, Source):
        raise UserError("data has tokens that are prepared already: give the text")
    if tokenizer is None:
        raise UserError(NO_TOKENIZER)
    return source, tokenizer


def make_data(config: Mapping[str, Any]) -> DataModule:
    """The data module, which caches its stores in the outputs directory."""
    return DataModule(
        make_source(config),
        make_tokenizer(config),
        cache=Path(config["outputs"]) / ".cache",
        seed=config["seed"],
        **split_data(config["data"])[1],
    )


def build_model(config: Mapping[str, Any], vocabulary_size: int) -> tuple[LanguageModel, Head]:
    """Model and head, with initial weights."""
    model = build("model", config["model"], vocabulary_size=vocabulary_size)
    head = build(
        "head",
        config["head"],
        hidden_size=model.hidden_size,
        vocabulary_size=vocabulary_size,
        embedding=model.embedding,
        init_range=model.init_range,
    )
    return model, head
