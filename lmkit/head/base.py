"""What a head is: the interface that training, evaluation and scoring go by."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from torch import Tensor, nn


class Loss(NamedTuple):
    """Of one window."""

    loss: Tensor  # scalar float32: what training minimises
    nll: Tensor  # scalar: the sum of -log p(target) in nats where weight is not 0, no gradient


class Head(nn.Module):
    """The interface that training, evaluation and scoring go by.

    hidden is (batch, time, hidden_size); targets is int64 (batch, time).
    """

    # Whether on compiled kernels results are bit for bit the same with any number of threads.
    any_threads = False

    def loss(self, hidden: Tensor, targets: Tensor, weight: Tensor) -> Loss:
        """The sum of weight * nll, or another loss, and the sum of nll itself, which is logged;
        weight is float32 (batch, time), 0 where masked."""
        raise NotImplementedError

    def nll(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """-log p(target) of each position in nats, float32 (batch, time)."""
        raise NotImplementedError

    def log_prob(self, hidden: Tensor) -> Iterator[Tensor]:
        """Chunks of log p in nats, float32 (positions, vocabulary), over hidden's positions."""
        raise NotImplementedError

    def keep_gradient(self) -> None:
        """After an update: gradients may be taken back, to use their memory again."""
