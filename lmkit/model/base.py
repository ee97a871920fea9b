"""What the head, the task and whoever reads a text know of a language model."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from lmkit.model.embedding import Embedding
from lmkit.model.state import States


class Output(NamedTuple):
    """What a model makes of a window; hidden and raw are (batch, time, hidden_size).

    hidden: what the head reads, dropped out in training. raw: the output of the last layer as it
    was before, the same tensor where nothing is dropped out. state: after the last position.
    """

    hidden: Tensor
    raw: Tensor
    state: States


class LanguageModel(nn.Module):
    """What the head and the task know of a model.

    `embedding` is the look-up E of shape (vocabulary_size, embedding_size); with `tie_weights`
    the head uses it as its matrix too (Press and Wolf 2017; Inan et al. 2017). `init_range` bounds
    the uniform start of embedding and head; null has them normal, scaled by their sizes.
    """

    # Whether on compiled kernels results are bit for bit the same with any number of threads.
    any_threads = False

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
        """tokens int64 and resets bool, both (batch, time), and the state before them."""
        raise NotImplementedError
