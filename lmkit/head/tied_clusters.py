"""The rows of a tied matrix by cluster, and their gradients as one of the whole matrix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lmkit.head.linear_cross_entropy import Memory


class TiedClusters(torch.autograd.Function):
    """A matrix (vocabulary, size) and a vector for each cluster (clusters, size) as the matrices of
    the shortlist, with these vectors as its last rows, and of each cluster.

    Where the rows are in order, those of the clusters are no copies, and their losses write the
    gradients where they belong in that of the matrix: neither is ever copied.
    """

    @staticmethod
    def forward(
        ctx: Any,
        matrix: Tensor,
        vectors: Tensor,
        order: Tensor | None,
        sizes: Sequence[int],
        memory: Memory,
        memories: Sequence[Memory],
    ) -> tuple[Tensor, ...]:
        """order: int64 (vocabulary), the rows by cluster; None: as they are. sizes: of the
        shortlist and the clusters. memory: of the gradient of the matrix. memories: of each loss
        that follows."""
        ctx.set_materialize_grads(False)
        ctx.sizes, ctx.like, ctx.order = sizes, (matrix.shape, matrix.dtype, matrix.device), order
        ctx.whole = None
        if order is None:
            ctx.whole = memory.gradient_of(matrix)
            for each, part in zip(memories[1:], ctx.whole.split(sizes)[1:], strict=True):
                each.gradient = part
        first, *tails = (matrix if order is None else matrix[order]).split(sizes)
        return torch.cat([first, vectors]), *tails

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        """A loss that had no memory, as after `retain_graph`, made a tensor of its own."""
        whole, ctx.whole = ctx.whole, None  # given away
        if whole is None:
            shape, dtype, device = ctx.like
            whole = torch.empty(shape, dtype=dtype, device=device)
        first, *tails = gradients
        short = ctx.sizes[0]
        every = [None if first is None else first[:short], *tails]
        order = ctx.order
        places = whole.split(ctx.sizes) if order is None else order.split(ctx.sizes)
        for place, gradient in zip(places, every, strict=True):
            if order is not None:
                whole[place] = 0 if gradient is None else gradient
            elif gradient is None:
                place.zero_()
            elif gradient.data_ptr() != place.data_ptr():
                place.copy_(gradient)
        return whole, None if first is None else first[short:], None, None, None, None
