"""The interface of a head, which training, evaluation and scoring use."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from torch import Tensor, nn


class Loss(NamedTuple):
    """What a head computes of one window in training."""

    loss: Tensor  # scalar float32: what training minimises
    nll: Tensor  # scalar, no gradient: the sum of -log p(target) in nats where weight is not 0


class Head(nn.Module):
    """The base class of all heads: from hidden vectors to losses and probabilities of tokens.

    hidden is (lanes, time, hidden_size); targets is int64 (lanes, time).
    """

    # Whether results on compiled kernels are bit for bit the same with any number of threads.
    any_threads = False
    # Whether it belongs to models that are counted, and only to these.
    counted = False

    def loss(self, hidden: Tensor, targets: Tensor, weight: Tensor) -> Loss:
        """The sum of weight * nll, or another loss, and the unweighted sum of nll, which is logged;
        weight is float32 (lanes, time), 0 where masked."""
        raise NotImplementedError

    def nll(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """-log p(target) of each position in nats, float32 (lanes, time)."""
        raise NotImplementedError

    def nll_at(self, hidden: Tensor, positions: Tensor, targets: Tensor) -> Tensor:
        """-log p(targets[i]) at position positions[i] of hidden (time, hidden_size) in nats,
        float32; positions is int64, in ascending order, and may name one several times."""
        return self.nll(hidden[positions][None], targets[None])[0]

    def log_prob(self, hidden: Tensor) -> Iterator[Tensor]:
        """log p in nats, float32 (positions, vocabulary), by chunks of hidden's positions."""
        raise NotImplementedError

    def keep_gradient(self) -> None:
        """Called after each update: a head may keep its gradients' memory for the next one."""
