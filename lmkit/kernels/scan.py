"""The linear recurrence h_t = a_t * h_{t-1} + b_t, each unit by itself, with resets.

On the CPU it is a compiled kernel, or a loop over positions where there is none; on other devices
a scan of logarithmic depth, in as many operators as the number of positions has bits.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lmkit.kernels.library import call, compiled


def linear_scan(decay: Tensor, update: Tensor, resets: Tensor, state: Tensor) -> Tensor:
    """decay (a) and update (b), both (lanes, time, size); resets bool (lanes, time); state, h
    before the first position, (lanes, size) -> h of each position, (lanes, time, size).

    At a reset h is exactly 0, and nothing before it gets a gradient. It is computed in float32, or
    in float64 if an argument is; in low precision a decay near 1 would be 1.
    """
    dtype = torch.promote_types(decay.dtype, torch.promote_types(update.dtype, torch.float32))
    hidden: Tensor = LinearScan.apply(decay.to(dtype), update.to(dtype), resets, state.to(dtype))
    return hidden


class LinearScan(torch.autograd.Function):
    """`linear_scan` of tensors of one dtype; backward is the same recurrence from the end."""

    @staticmethod
    def forward(ctx: Any, decay: Tensor, update: Tensor, resets: Tensor, state: Tensor) -> Tensor:
        decay, resets, state = decay.contiguous(), resets.contiguous(), state.contiguous()
        ctx.native = decay.dtype == torch.float32 and compiled(decay.device, torch.float32)
        if ctx.native:
            hidden = torch.empty_like(decay)
            arguments = (*decay.shape, decay, update.contiguous(), resets, state, hidden)
            call("scan_forward", torch.float32, *arguments)
        else:
            hidden = scan(zeroed(decay, resets), zeroed(update, resets), state)
        ctx.save_for_backward(decay, resets, state, hidden)
        return hidden

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, Tensor]:
        decay, resets, state, hidden = ctx.saved_tensors
        if ctx.native:
            if torch.is_grad_enabled():  # only under create_graph=True
                raise RuntimeError("the compiled scan has no second derivative: set kernels=torch")
            grad_decay, grad_update = torch.empty_like(decay), torch.empty_like(decay)
            grad_state = torch.empty_like(state)
            arguments = (decay, resets, state, hidden, grad.contiguous())
            grads = (grad_decay, grad_update, grad_state)
            call("scan_backward", torch.float32, *decay.shape, *arguments, *grads)
            return grad_decay, grad_update, None, grad_state
        decay = zeroed(decay, resets)
        after = F.pad(decay[:, 1:], (0, 0, 0, 1))  # a_{t+1}, with which h_t goes on
        grad = scan(after.flip(1), grad.flip(1), torch.zeros_like(state)).flip(1)
        grad_update = zeroed(grad, resets)
        before = torch.cat([state[:, None], hidden[:, :-1]], dim=1)
        return grad_update * before, grad_update, None, decay[:, 0] * grad[:, 0]


def zeroed(tensor: Tensor, resets: Tensor) -> Tensor:
    """The tensor (lanes, time, size), zero at resets (lanes, time)."""
    return tensor.masked_fill(resets[..., None], 0)


def scan(decay: Tensor, update: Tensor, state: Tensor) -> Tensor:
    """The recurrence in PyTorch's operators, in as few of them as the device likes."""
    return (looped if decay.device.type == "cpu" else doubled)(decay, update, state)


def looped(decay: Tensor, update: Tensor, state: Tensor) -> Tensor:
    """The recurrence, position by position."""
    hidden = []
    for a, b in zip(decay.unbind(1), update.unbind(1), strict=True):
        state = torch.addcmul(b, a, state)
        hidden.append(state)
    return torch.stack(hidden, dim=1)


def doubled(decay: Tensor, update: Tensor, state: Tensor) -> Tensor:
    """The recurrence in log2(time) rounds (Hillis and Steele 1986; Blelloch 1990): after a round
    each position has joined twice as many of those before it."""
    update = torch.cat(
        [torch.addcmul(update[:, :1], decay[:, :1], state[:, None]), update[:, 1:]], 1
    )
    distance = 1
    while distance < decay.shape[1]:
        past = (0, 0, distance, 0)
        update = torch.addcmul(update, decay, F.pad(update[:, :-distance], past))
        decay = decay * F.pad(decay[:, :-distance], past)
        distance *= 2
    return update
