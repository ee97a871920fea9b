"""What the head, the task and whoever reads a text know of a language model."""

from __future__ import annotations

from torch import Tensor, nn

from lmkit.model.embedding import Embedding
from lmkit.model.state import States


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

    def forward(self, tokens: Tensor, resets: Tensor, state: States) -> tuple[Tensor, States]:
        """tokens int64 and resets bool, both (batch, time) -> hidden (batch, time, hidden_size)
        and the state after the last position."""
        raise NotImplementedError
