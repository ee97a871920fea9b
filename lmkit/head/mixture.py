"""The mixture of softmaxes, whose log-probabilities are not bounded in rank by the hidden size."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from lmkit.head.base import Loss
from lmkit.head.linear_softmax import linear_log_prob, linear_nll
from lmkit.head.matrix import MatrixHead
from lmkit.head.mixture_cross_entropy import MixtureCrossEntropy
from lmkit.model import Embedding
from lmkit.model.dropout import dropout
from lmkit.ranges import Positive, Share, Size


class MixtureOfSoftmaxes(MatrixHead):
    """p = sum_k pi_k softmax(U tanh(W_k h + c_k) + b), pi = softmax(V h) (Yang et al. 2018,
    arXiv:1711.03953, equation 4). U has a row of the embedding's size for each word, and is the
    embedding's own matrix where that is tied.

    A U of its own starts as in `FullSoftmax`, W, c and V as in torch's nn.Linear. A step costs what
    `num_experts` full softmaxes would; never do more logits exist at a time than in one of them.

    num_experts: softmaxes that are mixed.
    latent_dropout: share of the experts' vectors tanh(W_k h + c_k) that a step leaves out.
    locked_latent: one mask of it for all positions of a window, another in each lane (Yang et al.
    2018); false: another at each position (Melis et al. 2020).
    bias: whether there is b.
    chunk_size: experts' vectors whose logits exist at a time, at least all those of one position;
    null: chosen by the vocabulary.
    """

    projects = True

    def __init__(
        self,
        hidden_size: int,
        vocabulary_size: int,
        embedding: Embedding | None = None,
        init_range: Positive | None = None,
        *,
        num_experts: Size = 15,
        latent_dropout: Share = 0.0,
        locked_latent: bool = True,
        **settings: Any,
    ) -> None:
        """settings: the other arguments of `MatrixHead`."""
        super().__init__(hidden_size, vocabulary_size, embedding, init_range, **settings)
        self.prior = nn.Linear(hidden_size, num_experts, bias=False)
        self.experts = nn.Linear(hidden_size, num_experts * self.weight.shape[1])
        self.num_experts = num_experts
        self.latent_dropout = latent_dropout
        self.locked_latent = locked_latent

    def num_multiplied(self) -> float:
        return super().num_multiplied() + (self.num_experts - 1) * self.weight.numel()

    def _latent(self, hidden: Tensor) -> Tensor:
        """hidden (.., hidden_size) -> the experts' vectors, side by side, (.., experts * size)."""
        return torch.tanh(self.experts(hidden))

    def _dropped(self, hidden: Tensor) -> Tensor:
        """As `_latent`, of hidden (lanes, time, hidden_size), in training mode with dropout."""
        shared = (1,) if self.locked_latent else ()
        latent = self._latent(hidden)
        return dropout(latent, self.latent_dropout, self.training, "head.latent", shared)

    def _log_prior(self, hidden: Tensor) -> Tensor:
        """hidden (rows, hidden_size) -> log pi, float32 (rows, experts)."""
        return self.prior(hidden).float().log_softmax(1)

    def loss(self, hidden: Tensor, targets: Tensor, weight: Tensor) -> Loss:
        vectors = self._dropped(hidden).view(-1, self.num_experts, self.weight.shape[1])
        loss, nll = MixtureCrossEntropy.apply(
            vectors,
            self._log_prior(hidden.flatten(0, 1)),
            self._matrix(),
            self.bias,
            targets.flatten(),
            weight.flatten(),
            self._rows(),
            self._memory,
        )
        return Loss(loss, nll)

    def _chunks(
        self, hidden: Tensor, latent: Tensor | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """By chunks of positions, the experts' vectors (positions * experts, size) and log pi.

        hidden: (positions, hidden_size). latent: the vectors as `_latent` has them, if there are
        any yet."""
        size = max(self._rows() // self.num_experts, 1)
        made = map(self._latent, hidden.split(size)) if latent is None else latent.split(size)
        for rows, vectors in zip(hidden.split(size), made, strict=True):
            yield vectors.view(-1, self.weight.shape[1]), self._log_prior(rows)

    def nll(self, hidden: Tensor, targets: Tensor) -> Tensor:
        return self._nll(self._chunks(hidden.flatten(0, 1)), targets)

    def nll_with_dropout(self, hidden: Tensor, targets: Tensor) -> Tensor:
        latent = self._dropped(hidden).flatten(0, 1)
        return self._nll(self._chunks(hidden.flatten(0, 1), latent), targets)

    def _nll(self, chunks: Iterator[tuple[Tensor, Tensor]], targets: Tensor) -> Tensor:
        """`nll` of targets (lanes, time), of `_chunks`."""
        done, found = 0, []
        for vectors, log_prior in chunks:
            target = targets.flatten()[done : done + len(log_prior)]
            each = target.repeat_interleave(self.num_experts)
            of_each = linear_nll(vectors, self.weight, self.bias, each, len(vectors))
            found.append(-(log_prior - of_each.view_as(log_prior)).logsumexp(1))
            done += len(log_prior)
        return torch.cat(found).view(targets.shape)

    def log_prob(self, hidden: Tensor) -> Iterator[Tensor]:
        for vectors, log_prior in self._chunks(hidden.flatten(0, 1)):
            (of_each,) = linear_log_prob(vectors, self.weight, self.bias, len(vectors))
            of_each = of_each.view(*log_prior.shape, -1)  # (positions, experts, vocabulary)
            if torch.is_grad_enabled():
                yield (of_each + log_prior[..., None]).logsumexp(1)
            else:  # in one memory
                joint = of_each.add_(log_prior[..., None])
                highest = joint.amax(1, keepdim=True)
                yield joint.sub_(highest).exp_().sum(1).log_().add_(highest[:, 0])
