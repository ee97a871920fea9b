"""Measures of each token of many texts, which are read at once in lanes."""

from __future__ import annotations

import typing
from collections.abc import Iterator
from contextlib import AbstractContextManager

import numpy as np
import torch
from torch import Tensor

from lmkit.head import Head
from lmkit.inference.order import TextOrder
from lmkit.inference.scoring import predictions
from lmkit.inference.text import Text
from lmkit.inference.words import Flags, TokenMeasures
from lmkit.model import Output
from lmkit.system.progress import progress
from lmkit.tokenizer import Tokenizer
from lmkit.windows import Window, WindowLoader
from lmkit.windows.lanes import Protocol

NUM_LANES = 64
POSITIONS = 4096  # of a window over all its lanes


class Reads(typing.Protocol):
    """What a table needs of a `TrainedModel`, whose module imports this one."""

    tokenizer: Tokenizer
    head: Head
    device: str
    protocol: Protocol

    @property
    def word_starts(self) -> Flags | None: ...
    def computing(self) -> AbstractContextManager[None]: ...
    def loader(
        self, text: Text, protocol: Protocol, num_lanes: int, positions: int
    ) -> WindowLoader: ...
    def read(self, loader: WindowLoader) -> Iterator[tuple[Window, Output]]: ...


def read_tokens(
    trained: Reads, text: Text, protocol: Protocol, starts: Flags | None
) -> TokenMeasures:
    """The measures of each token of several texts, which are read at once, each from zero.

    starts: (vocabulary,), the tokens that begin with whitespace."""
    size = trained.tokenizer.vocabulary_size
    sets = torch.zeros(size, 0 if starts is None else 2)
    if starts is not None:
        sets[:, 0], sets[:, 1] = torch.from_numpy(starts), torch.from_numpy(~starts)
        sets[trained.tokenizer.eos_id] = 1
    sets = sets.to(trained.device)
    num_units = len(text.document_ends if protocol == "document" else text.line_ends)
    loader = trained.loader(text, protocol, min(NUM_LANES, num_units), POSITIONS)
    order = TextOrder(loader)
    bits, entropy = np.empty((2, text.num_tokens))
    rank = np.empty(text.num_tokens, np.int64)
    shares = np.empty((text.num_tokens, sets.shape[1]))
    num_read = 0
    with progress("words", text.num_tokens) as advance:
        for window, output in trained.read(loader):
            places = order.next(window.mask)
            columns = _predictions(
                trained, output.hidden[window.mask], window.targets[window.mask], sets
            )
            for array, values in zip((bits, entropy, rank, shares), columns, strict=True):
                array[places] = values.cpu().numpy()
            num_read += len(places)
            advance(num_read)
    assert num_read == text.num_tokens
    return TokenMeasures(bits, entropy, rank, shares)


def _predictions(trained: Reads, hidden: Tensor, targets: Tensor, sets: Tensor) -> list[Tensor]:
    """The columns of `Predictions` for hidden vectors (n, hidden_size) and targets (n)."""
    chunks = []
    with trained.computing():
        for log_prob in trained.head.log_prob(hidden[None]):
            chunk, targets = targets[: len(log_prob)], targets[len(log_prob) :]
            with torch.autocast(trained.device, enabled=False):
                chunks.append(predictions(log_prob, chunk, sets))
        return [torch.cat(column) for column in zip(*chunks, strict=True)]
