"""The softmax over words whose vectors are smaller than the hidden ones."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from lmkit.head.base import Loss
from lmkit.head.full import FullSoftmax
from lmkit.model.dropout import dropout
from lmkit.ranges import Share


class ProjectedSoftmax(FullSoftmax):
    """y_hat = softmax(U P h + b_2), where P brings h down to the size of the embedding, and U is
    the weight of `embedding` where that is tied (Melis et al. 2018, arXiv:1707.05589, section 3).

    P begins orthogonal, as in the authors' program (deepmind/lamb); U and b_2 as in `FullSoftmax`.

    projection_dropout: share of P h that a step leaves out.
    bias: whether there is b_2.
    chunk_size: positions whose logits exist at a time; null: chosen by the vocabulary.
    """

    projects = True
    any_threads = False

    def __init__(
        self,
        hidden_size: int,
        vocabulary_size: int,
        *,
        projection_dropout: Share = 0.0,
        **settings: Any,
    ) -> None:
        """settings: the arguments of `FullSoftmax`."""
        super().__init__(hidden_size, vocabulary_size, **settings)
        self.projection = nn.Parameter(torch.empty(self.weight.shape[1], hidden_size))
        nn.init.orthogonal_(self.projection)
        self.projection_dropout = projection_dropout

    def _projected(self, hidden: Tensor) -> Tensor:
        """hidden (.., hidden_size) -> (.., size of the embedding)."""
        return nn.functional.linear(hidden, self.projection)

    def _dropped(self, hidden: Tensor) -> Tensor:
        """As `_projected`, in training mode with dropout."""
        vectors = self._projected(hidden)
        return dropout(vectors, self.projection_dropout, self.training, "head.projection")

    def loss(self, hidden: Tensor, targets: Tensor, weight: Tensor) -> Loss:
        return super().loss(self._dropped(hidden), targets, weight)

    def nll(self, hidden: Tensor, targets: Tensor) -> Tensor:
        return super().nll(self._projected(hidden), targets)

    def nll_with_dropout(self, hidden: Tensor, targets: Tensor) -> Tensor:
        return super().nll(self._dropped(hidden), targets)

    def log_prob(self, hidden: Tensor) -> Iterator[Tensor]:
        return super().log_prob(self._projected(hidden))

    def _logits(self, hidden: Tensor, targets: Tensor) -> Tensor:
        return super()._logits(self._projected(hidden), targets)
