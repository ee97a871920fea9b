"""The state that a model carries: for each layer a tuple of tensors, dimension 0 the lane."""

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
    """The same state, the zero state in lanes where it is not finite."""
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
    """The state of all lanes, from those of the processes that share them, by rank."""
    return tuple(
        tuple(torch.cat(tensors) for tensors in zip(*layer, strict=True))
        for layer in zip(*shares, strict=True)
    )


def share_of(states: States, rank: int, world_size: int) -> States:
    """What a process has of the state of all lanes."""
    return tuple(
        tuple(tensor.chunk(world_size)[rank].clone() for tensor in layer) for layer in states
    )
