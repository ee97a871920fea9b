"""The interface of a head, which training, evaluation and scoring use."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar, NamedTuple

from torch import Tensor, nn


class Loss(NamedTuple):
    """What a head computes of one window in training."""

    loss: Tensor  # scalar float32: what training minimises
    # Scalar, no gradient: the sum of -log p(target) in nats where weight is not 0, or of what
    # `Head.measure` names instead.
    nll: Tensor


class Head(nn.Module):
    """The base class of all heads: from hidden vectors to losses and probabilities of tokens.

    hidden is (lanes, time, hidden_size); targets is int64 (lanes, time).
    """

    # Whether results on compiled kernels are bit for bit the same with any number of threads.
    any_threads = False
    # The name of `Loss.nll`, logged as train/NAME; perplexity is logged beside an nll alone.
    measure: ClassVar[str] = "nll"
    # Whether `learn_counts` is to be called before a training begins.
    wants_counts: ClassVar[bool] = False
    # The parameters with a row for each token id, which follow their tokens into another vocabulary
    # (init_vocabulary=new); None: what others hold depends on the vocabulary too.
    token_rows: ClassVar[tuple[str, ...] | None] = ("weight", "bias")
    # Whether a tied matrix multiplies vectors that the head makes of the hidden ones, of any size.
    projects: ClassVar[bool] = False
    # Set by the task: whether the gradient of the matrix may be sparse.
    sparse_gradient = False
    # Whether a CUDA graph may repeat its loss; a class that says nothing, unless it is lmkit's, may
    # not: see training/cuda_graphs.py.
    capturable: ClassVar[bool]
    # Whether it belongs to models that are counted, and only to these.
    counted = False

    @staticmethod
    def misfits(config: Mapping[str, Any], vocabulary_size: int | None) -> list[str]:
        """Contradictions between the head's keys and what is beside them, a sentence each. config:
        the whole, of which a group may lack keys that have their defaults. vocabulary_size: None
        before the data is prepared."""
        return []

    def learn_counts(self, counts: Tensor) -> None:
        """Take note, before any weights are loaded, of how often each token is in the train split;
        counts: float64 (vocabulary)."""

    def num_multiplied(self) -> float:
        """The number of weights that each position is multiplied with in training, on average."""
        return float(sum(parameter.numel() for parameter in self.parameters()))

    def loss(self, hidden: Tensor, targets: Tensor, weight: Tensor) -> Loss:
        """The sum of weight * nll, or another loss, and the unweighted sum of nll, which is logged;
        weight is float32 (lanes, time), 0 where masked."""
        raise NotImplementedError

    def nll(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """-log p(target) of each position in nats, float32 (lanes, time)."""
        raise NotImplementedError

    def nll_with_dropout(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """As `nll`, but in training mode with the dropout that `loss` has; a head that has dropout
        of its own overrides it."""
        return self.nll(hidden, targets)

    def nll_at(self, hidden: Tensor, positions: Tensor, targets: Tensor) -> Tensor:
        """-log p(targets[i]) at position positions[i] of hidden (time, hidden_size) in nats,
        float32; positions is int64, in ascending order, and may name one several times."""
        return self.nll(hidden[positions][None], targets[None])[0]

    def log_prob(self, hidden: Tensor) -> Iterator[Tensor]:
        """log p in nats, float32 (positions, vocabulary), by chunks of hidden's positions."""
        raise NotImplementedError

    def keep_gradient(self) -> None:
        """Called after each update: a head may keep its gradients' memory for the next one."""

    @contextmanager
    def fresh_memory(self) -> Iterator[None]:
        """Within this context the head uses no memory that it has kept, and keeps none."""
        yield
