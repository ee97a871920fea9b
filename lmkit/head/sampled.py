"""The softmax over the whole vocabulary, trained on the target among sampled words."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
from torch import Tensor

from lmkit.errors import UserError
from lmkit.head.base import Loss
from lmkit.head.full import FullSoftmax
from lmkit.head.sampled_cross_entropy import SampledCrossEntropy
from lmkit.head.sampler import Distribution, Sampler, probabilities
from lmkit.model.dropout import key_of
from lmkit.ranges import Size

log = logging.getLogger(__name__)


class SampledSoftmax(FullSoftmax):
    """`FullSoftmax`, but a step compares the target with words that are drawn, the same for all
    positions of a window, and not with the whole vocabulary (Jean et al. 2015, arXiv:1412.2007,
    section 3).

    With E_w the probability of word w to be among those drawn, a logit is u_w h + b_w - log E_w, of
    the target too; a drawn word that is the target is left out. What is drawn follows from seed,
    epoch and window. A validation is exact. What is logged of a step is train/sampled_nll, that of
    the target among the drawn words: it is no nll, and neither train/nll nor train/perplexity is
    logged.

    num_samples: words drawn for a window, of which some are the same.
    sampler: log_uniform, by Zipf's law for the order of their counts; unigram, by their counts.
    """

    measure = "sampled_nll"
    wants_counts = True
    capturable = False  # the host draws the words

    def __init__(
        self,
        hidden_size: int,
        vocabulary_size: int,
        *,
        num_samples: Size = 8192,
        sampler: Distribution = "log_uniform",
        **settings: Any,
    ) -> None:
        """settings: the arguments of `FullSoftmax`."""
        super().__init__(hidden_size, vocabulary_size, **settings)
        self.num_samples = num_samples
        self.distribution = sampler
        self._sampler: Sampler | None = None
        if sampler == "log_uniform":  # ids are taken to be in order until there are counts
            self._make_sampler(np.zeros(vocabulary_size))

    @property
    def any_threads(self) -> bool:  # type: ignore[override]
        """Only in evaluation: the products of a step are PyTorch's."""
        return not self.training

    def learn_counts(self, counts: Tensor) -> None:
        """Draw by float64 counts (vocabulary) from now on."""
        if self.num_samples >= len(counts):
            log.warning(
                f"head.num_samples={self.num_samples} is no fewer than the {len(counts)} tokens of "
                "the vocabulary: head=full is exact and takes no longer"
            )
        self._make_sampler(counts.numpy())

    def _make_sampler(self, counts: Any) -> None:
        self._sampler = Sampler(probabilities(self.distribution, counts), self.num_samples)

    def num_multiplied(self) -> float:
        vocabulary_size, size = self.weight.shape
        return float(min(self.num_samples, vocabulary_size) * size)

    def loss(self, hidden: Tensor, targets: Tensor, weight: Tensor) -> Loss:
        if self._sampler is None:
            raise UserError(
                "head.sampler=unigram draws by the counts of the train split: call learn_counts"
            )
        device = self.weight.device
        loss, nll = SampledCrossEntropy.apply(
            hidden.flatten(0, 1),
            self._matrix(),
            self.bias,
            self._sampler.log_expected(device),
            self._sampler.draw(key_of("head.samples")).to(device, non_blocking=True),
            targets.flatten(),
            weight.flatten(),
            self._rows(),
            self._memory,
            self.sparse_gradient,
        )
        return Loss(loss, nll)

    def keep_gradient(self) -> None:
        if self.weight.grad is None or not self.weight.grad.is_sparse:
            super().keep_gradient()
