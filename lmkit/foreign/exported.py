"""Reads a directory that `lmkit export format=huggingface` has written."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from lmkit.errors import UserError
from lmkit.foreign.file import read
from lmkit.system.regular_file import read_bytes
from lmkit.tokenizer import Tokenizer, restored

SOURCE = "lmkit.json"
WEIGHTS = "model.safetensors"
MAX_SOURCE = 1 << 30  # bytes


@dataclass(frozen=True)
class Exported:
    """An exported model. model, head: nodes of a config. weights: by their names in lmkit."""

    model: dict[str, Any]
    head: dict[str, Any]
    protocol: str
    tokenizer: Tokenizer
    weights: dict[str, Tensor]


def read_exported(directory: Path) -> Exported:
    """Raises UserError for a directory that is none of lmkit's, or is damaged."""
    path = directory / SOURCE
    try:
        source = json.loads(read_bytes(path, MAX_SOURCE))
        parts = {name: source[name] for name in ("model", "head", "protocol")}
        tokenizer = restored(source["tokenizer"], path)
    except FileNotFoundError:
        raise UserError(
            f"{directory} is no directory that lmkit export has written: it has no {SOURCE}; name "
            "the file of weights in it"
        ) from None
    except (ValueError, RecursionError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged: {type(error).__name__}: {error}") from None
    try:
        tensors = read(directory / WEIGHTS)
    except FileNotFoundError:
        raise UserError(f"{directory} is damaged: it has no {WEIGHTS}") from None
    weights = {_name(name): tensor for name, tensor in tensors.items()}
    tied = parts["model"].get("tie_weights", True) and "model.embedding.weight" in weights
    if tied and "head.weight" not in weights:
        weights["head.weight"] = weights["model.embedding.weight"]
    return Exported(**parts, tokenizer=tokenizer, weights=weights)


def _name(name: str) -> str:
    """The name in lmkit of a parameter of the modeling file."""
    return name.removesuffix("_l0").replace("lm_head.", "head.", 1)
