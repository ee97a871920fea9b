"""A checked config to the objects that it names: source, tokenizer, data, model and head."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lmkit.config.build import build
from lmkit.config.check import split_data
from lmkit.corpus import Source
from lmkit.errors import UserError
from lmkit.head import Head
from lmkit.model import LanguageModel
from lmkit.store.prepared import PreparedSource
from lmkit.tokenizer import Tokenizer
from lmkit.windows import DataModule


def make_source(config: Mapping[str, Any]) -> Source:
    """What documents or tokens are read from."""
    source: Source = build("data", split_data(config["data"])[0])
    return source


def make_tokenizer(config: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer, not trained yet where it is one that is."""
    tokenizer: Tokenizer = build("tokenizer", config["tokenizer"])
    return tokenizer


def text_and_tokenizer(config: Mapping[str, Any]) -> tuple[Source, Tokenizer]:
    """Source and tokenizer; raises UserError where the source has tokens and no text."""
    source = make_source(config)
    if isinstance(source, PreparedSource):
        raise UserError("data has tokens that are prepared already: give the text")
    return source, make_tokenizer(config)


def make_data(config: Mapping[str, Any]) -> DataModule:
    """The data module, its stores cached under the outputs."""
    return DataModule(
        make_source(config),
        make_tokenizer(config),
        cache=Path(config["outputs"]) / ".cache",
        seed=config["seed"],
        **split_data(config["data"])[1],
    )


def build_model(config: Mapping[str, Any], vocabulary_size: int) -> tuple[LanguageModel, Head]:
    """Model and head, with fresh weights."""
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
