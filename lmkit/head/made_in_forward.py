"""Losses whose gradients forward makes together with them, as the logits exist only then.

An autograd function of such a loss returns from its forward what `make` returns, and from its
backward what `hand_out` returns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

# From the tensors of a loss to its nll (rows), and its gradients by the first of the tensors, as
# many as there are: in float32, or None where none is needed.
Compute = Callable[..., tuple[Tensor, Sequence[Tensor | None]]]


def make(
    ctx: Any,
    compute: Compute,
    tensors: Sequence[Tensor | None],
    weight: Tensor,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """The loss, scalar float32, and the sum of nll where weight is not 0, which has no gradient:
    scalar float64, or float32 on a device without float64.

    compute: is called with the tensors and, after them, weight float32 (rows). dtype: of products.
    """
    weight, scale = _scaled(weight, dtype)
    ctx.save_for_backward(*tensors, weight, scale)
    ctx.compute = compute
    nll, ctx.gradients = compute(*tensors, weight)
    loss, exact = _sum(nll * weight), torch.float32 if nll.is_mps else torch.float64
    nll_sum = _sum(torch.where(weight != 0, nll, 0.0).to(exact))
    ctx.mark_non_differentiable(nll_sum)
    return loss if scale is None else loss * scale, nll_sum


def hand_out(ctx: Any, grad_loss: Tensor, num_arguments: int) -> tuple[Tensor | None, ...]:
    """The gradients, multiplied by the one of the loss, and None for the others of so many
    arguments of forward; after `retain_graph` they are computed again."""
    if torch.is_grad_enabled():  # only under create_graph=True
        raise RuntimeError(
            "the fused loss made its gradients in forward and has no second derivative: "
            "use head.nll, which autograd can differentiate twice"
        )
    *tensors, scale = ctx.saved_tensors
    gradients, ctx.gradients = ctx.gradients, None  # given away: the receiver may change them
    if gradients is None:
        _, gradients = ctx.compute(*tensors)
    factor = grad_loss if scale is None else grad_loss * scale
    if factor.device.type != "cpu" or factor != 1:  # do not wait for an accelerator
        for gradient in gradients:
            if gradient is not None:
                gradient.mul_(factor)
    made = [
        gradient if gradient is None or tensor is None else gradient.to(tensor.dtype)
        for gradient, tensor in zip(gradients, tensors, strict=False)
    ]
    return *made, *[None] * (num_arguments - len(made))


def _scaled(weight: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """weight (rows) for products in `dtype`, and what it was divided by: 1 / tokens is too small
    for fp16, so that the largest weight becomes 1."""
    if dtype != torch.float16 or not len(weight):
        return weight, None
    scale = weight.max().clamp_min(torch.finfo(torch.float32).tiny)
    return weight / scale, scale


def _sum(values: Tensor) -> Tensor:
    """The sum of values (rows), the same with any number of threads: PyTorch divides a longer sum
    among them."""
    return torch.stack([chunk.sum() for chunk in values.split(2**14)]).sum()
