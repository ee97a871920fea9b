"""The products of a recurrence that is a loop over positions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lmkit.kernels.matmul import fast_matmul, product_dtype


class Products:
    """W v_t + b_t at one position t after the other, where v_t is known only when t - 1 is done.

    The gradient of W is one product for all positions; autograd would make one, as large as W, for
    each position and add them up.
    """

    def __init__(self, weight: Tensor, added: Tensor) -> None:
        """weight: W (rows, n). added: b (lanes, time, rows)."""
        self._vectors: list[Tensor] | None = [] if torch.is_grad_enabled() else None
        if self._vectors is not None:
            added = WeightGradient.apply(added, weight, self._vectors)
        self._added = added.unbind(1)
        self._weight = weight.detach().to(product_dtype(added)).T

    @classmethod
    def alone(cls, weight: Tensor, lanes: int, time: int) -> Products:
        """W v_t, without b."""
        return cls(weight, weight.new_zeros(()).expand(lanes, time, len(weight)))

    def __call__(self, t: int, vector: Tensor) -> Tensor:
        """vector: v_t (lanes, n) -> (lanes, rows). Each position once, in order."""
        if self._vectors is not None:
            self._vectors.append(vector.detach())
        return torch.addmm(self._added[t], vector, self._weight)


class WeightGradient(torch.autograd.Function):
    """b as it is; in backward the gradient of b, which is that of every W v_t + b_t, makes that of
    W."""

    @staticmethod
    def forward(ctx: Any, added: Tensor, weight: Tensor, vectors: list[Tensor]) -> Tensor:
        """vectors: the v_t (lanes, n), of which there are none yet."""
        ctx.vectors, ctx.dtype = vectors, weight.dtype
        return added.view_as(added)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        vectors = torch.stack(ctx.vectors, dim=1).to(grad.dtype)  # (lanes, time, n)
        with fast_matmul():
            grad_weight = grad.flatten(0, 1).T @ vectors.flatten(0, 1)
        return grad, grad_weight.to(ctx.dtype), None
