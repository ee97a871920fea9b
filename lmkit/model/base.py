"""The interface of a language model, which head, training, evaluation and sampling use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy.typing as npt
from torch import Tensor, nn

from lmkit.model.embedding import Embedding
from lmkit.model.state import States


class Output(NamedTuple):
    """What a model computes for a window; hidden and raw are (lanes, time, hidden_size).

    hidden: what the head reads, after dropout in training. raw: the output of the last layer before
    dropout, the same tensor where there is no dropout. state: the state after the last position.
    """

    hidden: Tensor
    raw: Tensor
    state: States


class Counted(NamedTuple):
    """What counting a text makes.

    head: the state dict of the head. report: what was counted, as plain values, a row for each part
    of the model; `fallback` says why a part has settings that could not be estimated.
    """

    head: dict[str, Tensor]
    report: list[dict[str, Any]]


class LanguageModel(nn.Module):
    """The base class of all models: reads windows of tokens and carries a state between them.

    `embedding` is the look-up E of shape (vocabulary_size, embedding_size); with `tie_weights`
    the head uses it as its matrix too (Press and Wolf 2017; Inan et al. 2017). Embedding and head
    start uniform between -init_range and init_range; with null, normal and scaled by their sizes.
    """

    # Whether results on compiled kernels are bit for bit the same with any number of threads.
    any_threads = False
    # Whether the head reads vectors of `hidden_size` with tied weights, too, not of embedding_size.
    keeps_hidden_size = False
    # Whether the model and its head are counted once (`count`), not trained by gradients.
    counted = False
    # The share of the lanes in which a window of training begins from the zero state.
    fresh_state: float = 0.0

    def __init__(
        self,
        vocabulary_size: int,
        embedding_size: int,
        hidden_size: int,
        tie_weights: bool,
        init_range: float | None,
    ) -> None:
        super().__init__()
        self.vocabulary_size = vocabulary_size
        self.hidden_size = hidden_size
        self.tie_weights = tie_weights
        self.init_range = init_range
        self.embedding = Embedding(vocabulary_size, embedding_size, init_range, tie_weights)

    def initial_state(self, num_lanes: int) -> States:
        """The zero state h_0: a tuple per layer of tensors whose dimension 0 is the lane."""
        raise NotImplementedError

    def forward(self, tokens: Tensor, resets: Tensor, state: States) -> Output:
        """tokens int64 and resets bool, both (lanes, time), and the state before them."""
        raise NotImplementedError

    def count(
        self,
        tokens: npt.ArrayLike,
        unit_ends: npt.ArrayLike | None,
        eos_id: int,
        advance: Callable[[float], None],
    ) -> Counted:
        """Count a text, for classes that are `counted`.

        unit_ends: exclusive ends of what is read from the zero state, None if nothing is. advance:
        called with how much is done, from 0 to 1.
        """
        raise NotImplementedError
