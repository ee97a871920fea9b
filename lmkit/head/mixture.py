"""The mixture of softmaxes, whose log-probabilities are not bounded in rank by the hidden size."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from lmkit.head.base import Head, Loss
from lmkit.head.linear_cross_entropy import Memory
from lmkit.head.linear_softmax import linear_log_prob, linear_nll, rows_at_once
from lmkit.head.mixture_cross_entropy import MixtureCrossEntropy
from lmkit.model import Embedding
from lmkit.model.dropout import dropout
from lmkit.model.embedding import draw
from lmkit.ranges import Positive, Share, Size


class MixtureOfSoftmaxes(Head):
    """p = sum_k pi_k softmax(U tanh(W_k h + c_k) + b), pi = softmax(V h) (Yang et al. 2018,
    arXiv:1711.03953, equation 4). U has a row of the embedding's size for each word, and is the
    embedding's own matrix where that is tied.

    A U of its own starts as in `FullSoftmax`, W, c and V as in torch's nn.Linear. A step costs what
    `num_experts` full softmaxes would; never do more logits exist at a time than in one of them.

    num_experts: softmaxes that are mixed.
    latent_dropout: share of the experts' vectors tanh(W_k h + c_k) that a step leaves out, with one
    mask for all positions of a window, another in each lane.
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
        bias: bool = True,
        chunk_size: Size | None = None,
    ) -> None:
        super().__init__()
        size = hidden_size if embedding is None else embedding.embedding_dim
        if embedding is not None and embedding.tied:
            self.weight = embedding.weight
            self._matrix = embedding.matrix
        else:
            self.weight = nn.Parameter(torch.empty(vocabulary_size, size))
            draw(self.weight, size**-0.5, init_range)
            self._matrix = lambda: self.weight
        self.bias = nn.Parameter(torch.zeros(vocabulary_size)) if bias else None
        self.prior = nn.Linear(hidden_size, num_experts, bias=False)
        self.experts = nn.Linear(hidden_size, num_experts * size)
        self.num_experts = num_experts
        self.latent_dropout = latent_dropout
        self._chunk_size = chunk_size
        self._memory = Memory()

    def _latent(self, hidden: Tensor) -> Tensor:
        """hidden (.., hidden_size) -> the experts' vectors, side by side, (.., experts * size)."""
        return torch.tanh(self.experts(hidden))

    def _log_prior(self, hidden: Tensor) -> Tensor:
        """hidden (rows, hidden_size) -> log pi, float32 (rows, experts)."""
        return self.prior(hidden).float().log_softmax(1)

    def _rows(self) -> int:
        return rows_at_once(self.weight, self._chunk_size)

    def loss(self, hidden: Tensor, targets: Tensor, weight: Tensor) -> Loss:
        latent = dropout(
            self._latent(hidden), self.latent_dropout, self.training, "head.latent", shared=(1,)
        )
        vectors = latent.view(-1, self.num_experts, self.weight.shape[1])
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

    def keep_gradient(self) -> None:
        self._memory.gradient, self.weight.grad = self.weight.grad, None

    def _chunks(self, hidden: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """By chunks of positions, the experts' vectors (positions * experts, size) and log pi."""
        for rows in hidden.split(max(self._rows() // self.num_experts, 1)):
            yield self._latent(rows).view(-1, self.weight.shape[1]), self._log_prior(rows)

    def nll(self, hidden: Tensor, targets: Tensor) -> Tensor:
        done, found = 0, []
        for vectors, log_prior in self._chunks(hidden.flatten(0, 1)):
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
