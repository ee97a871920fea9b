"""The state that a model carries: a tuple of tensors per layer, whose dimension 0 is the lane."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

State = tuple[Tensor, ...]
States = tuple[State, ...]


def detached(states: States) -> States:
    """The same state, cut from the graph: where truncated BPTT truncates."""
    return tuple(tuple(tensor.detach() for tensor in layer) for layer in states)


def finite(states: States) -> States:
    """The same state, but zero in lanes where it is not finite."""
    return tuple(tuple(map(_finite, layer)) for layer in states)


def _finite(tensor: Tensor) -> Tensor:
    if not tensor.is_floating_point():
        return tensor
    finite = torch.isfinite(tensor).flatten(1).all(1)
    return tensor.where(finite.view(-1, *[1] * (tensor.dim() - 1)), 0)


def joined(shares: Sequence[States]) -> States:
    """The state of all lanes, from the shares of the processes, in order of rank."""
    return tuple(
        tuple(torch.cat(tensors) for tensors in zip(*layer, strict=True))
        for layer in zip(*shares, strict=True)
    )


def share_of(states: States, rank: int, world_size: int) -> States:
    """The part of the state of all lanes that belongs to one process."""
    return tuple(
        tuple(tensor.chunk(world_size)[rank].clone() for tensor in layer) for layer in states
    )
