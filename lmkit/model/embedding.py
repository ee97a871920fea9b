"""The look-up of word vectors, whose weight the softmax may share."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Embedding(nn.Embedding):
    """E (vocabulary_size, size); where possible its gradient holds the looked-up rows only.

    With `tied` the head multiplies by `matrix()`, and the look-up's sparse gradient is added
    into the head's dense one, so that the look-up never makes a dense one.

    E starts from U(-init_range, init_range), or without init_range from N(0, 1) as torch's own:
    LeCun et al. 1998 (equation 16) want inputs of variance 1, and a matrix of variance 1 / size. A
    tied E is both and starts with the geometric mean of the two.
    """

    def __init__(
        self, vocabulary_size: int, size: int, init_range: float | None, tied: bool
    ) -> None:
        super().__init__(vocabulary_size, size)
        draw(self.weight, size**-0.25 if tied else 1.0, init_range)
        self.tied = tied
        self.sparse_gradient = False  # the task sets it where the optimiser can use one
        self._matrix: Tensor | None = None

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens: int64, of any shape -> their vectors, one dimension more."""
        weight = self.weight
        sparse = weight.device.type == "cpu" and (self.tied or self.sparse_gradient)
        if sparse and self.tied and torch.is_grad_enabled():
            weight, self._matrix = Shared.apply(weight)
        return F.embedding(tokens, weight, sparse=sparse)

    def matrix(self) -> Tensor:
        """The weight as the head multiplies by it, once per look-up: backward adds the gradients of
        the two."""
        matrix, self._matrix = self._matrix, None
        return self.weight if matrix is None else matrix


def draw(weight: Tensor, std: float, init_range: float | None) -> None:
    """Initialise a weight from U(-init_range, init_range), or without it from N(0, std^2)."""
    if init_range is None:
        nn.init.normal_(weight, 0.0, std)
    else:
        nn.init.uniform_(weight, -init_range, init_range)


class Shared(torch.autograd.Function):
    """One weight as two tensors, for a look-up and a product, whose gradients are added."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        return weight.view_as(weight), weight.view_as(weight)

    @staticmethod
    def backward(ctx: Any, rows: Tensor | None, dense: Tensor | None) -> Tensor | None:
        """Add rows, sparse, into dense, which the product made and nothing else holds."""
        if rows is None or dense is None:
            return dense if rows is None else rows
        return dense + rows if torch.is_grad_enabled() else dense.add_(rows)
