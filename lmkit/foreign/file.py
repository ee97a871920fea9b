"""Reads a file of weights, of whatever format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import safetensors.torch

from lmkit.errors import UserError
from lmkit.foreign import unpickler
from lmkit.system.regular_file import opened


def read(path: Path) -> Any:
    """The object in a file: tensors by name of safetensors, or what PyTorch has saved.

    Raises UserError for a file that is no such thing, is damaged, or holds what cannot be read.
    """
    with opened(path) as file:
        header = file.read(9)  # safetensors: the length of the header, and its first byte
    if header[8:] != b"{":
        return unpickler.read(path)
    try:
        return safetensors.torch.load_file(path)
    except safetensors.SafetensorError as error:
        raise UserError(f"{path} is no file of safetensors, or is damaged: {error}") from None
