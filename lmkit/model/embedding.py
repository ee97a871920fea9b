"""The look-up of word vectors, and one weight for look-up and softmax."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Embedding(nn.Embedding):
    """E (vocabulary_size, size); the gradient is that of the rows looked up, where possible.

    With `tied` the head multiplies with `matrix()`, and the gradients of the two uses are
    summed where the head left its own, without a dense one of the look-up.

    It starts from U(-init_range, init_range), or without one from N(0, 1) as torch's own: inputs of
    variance 1, as LeCun et al. 1998 want them (equation 16), who give a matrix the variance
    1 / size. Tied it is both, and has their geometric mean.
    """

    def __init__(
        self, vocabulary_size: int, size: int, init_range: float | None, tied: bool
    ) -> None:
        super().__init__(vocabulary_size, size)
        draw(self.weight, size**-0.25 if tied else 1.0, init_range)
        self.tied = tied
        self.sparse_gradient = False  # set by who knows that the optimiser can take it
        self._matrix: Tensor | None = None

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens: int64, of any shape -> their vectors, one dimension more."""
        weight = self.weight
        sparse = weight.device.type == "cpu" and (self.tied or self.sparse_gradient)
        if sparse and self.tied and torch.is_grad_enabled():
            weight, self._matrix = Shared.apply(weight)
        return F.embedding(tokens, weight, sparse=sparse)

    def matrix(self) -> Tensor:
        """The weight for one use by the head, after a look-up together with its."""
        matrix, self._matrix = self._matrix, None
        return self.weight if matrix is None else matrix


def draw(weight: Tensor, std: float, init_range: float | None) -> None:
    """Start a weight from U(-init_range, init_range), or without one from N(0, std^2)."""
    if init_range is None:
        nn.init.normal_(weight, 0.0, std)
    else:
        nn.init.uniform_(weight, -init_range, init_range)


class Shared(torch.autograd.Function):
    """One tensor as two, for a look-up and a product."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        return weight.view_as(weight), weight.view_as(weight)

    @staticmethod
    def backward(ctx: Any, rows: Tensor | None, dense: Tensor | None) -> Tensor | None:
        """rows, sparse, into dense, which the product made and nobody else has seen."""
        if rows is None or dense is None:
            return dense if rows is None else rows
        return dense + rows if torch.is_grad_enabled() else dense.add_(rows)
