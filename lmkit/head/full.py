"""The softmax over the whole vocabulary, which never holds all the logits at once."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from lmkit.head.base import Loss
from lmkit.head.linear_cross_entropy import LinearCrossEntropy
from lmkit.head.linear_softmax import linear_log_prob, linear_nll
from lmkit.head.matrix import MatrixHead


class FullSoftmax(MatrixHead):
    """y_hat = softmax(U h + b_2) over the whole vocabulary; U is the weight of `embedding` where
    that is tied, else a weight of its own.

    A weight of its own starts from U(-init_range, init_range), or without init_range from
    N(0, 1 / hidden_size) (LeCun et al. 1998, equation 16).

    bias: whether there is b_2.
    chunk_size: positions whose logits exist at a time; null: chosen by the vocabulary.
    """

    any_threads = True

    def loss(self, hidden: Tensor, targets: Tensor, weight: Tensor) -> Loss:
        loss, nll = LinearCrossEntropy.apply(
            hidden.flatten(0, 1),
            self._matrix(),
            self.bias,
            targets.flatten(),
            weight.flatten(),
            self._rows(),
            self._memory,
        )
        return Loss(loss, nll)

    def nll(self, hidden: Tensor, targets: Tensor) -> Tensor:
        rows = (hidden.flatten(0, 1), self.weight, self.bias, targets.flatten())
        return linear_nll(*rows, self._rows()).view_as(targets)

    def nll_at(self, hidden: Tensor, positions: Tensor, targets: Tensor) -> Tensor:
        """As the base class says, but with one normaliser for all targets of a position, which
        differ by their logits only."""
        again = torch.zeros_like(positions, dtype=torch.bool)
        again[1:] = positions[1:] == positions[:-1]
        first = self.nll(hidden[positions[~again]][None], targets[~again][None])[0].float()
        row = (~again).cumsum(0) - 1  # of `first`
        nll = first[row]
        others = hidden[positions[again]]
        higher = self._logits(others, targets[~again][row[again]]) - self._logits(
            others, targets[again]
        )
        nll[again] = (nll[again] + higher).clamp_min(0)
        return nll

    def _logits(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """The logit of a target at each position, float32 (positions)."""
        logits = (hidden.float() * self.weight[targets].to(hidden.dtype).float()).sum(1)
        return logits if self.bias is None else logits + self.bias[targets]

    def log_prob(self, hidden: Tensor) -> Iterator[Tensor]:
        return linear_log_prob(hidden.flatten(0, 1), self.weight, self.bias, self._rows())
