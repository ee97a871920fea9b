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
    return tuple(
        tuple(
            tensor.where(torch.isfinite(tensor).all(1, keepdim=True), 0)
            if tensor.is_floating_point()
            else tensor
            for tensor in layer
        )
        for layer in states
    )


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
