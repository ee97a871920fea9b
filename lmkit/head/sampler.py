"""Draws the words that a sampled softmax compares the target with."""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Distribution = Literal["log_uniform", "unigram"]


def probabilities(
    distribution: Distribution, counts: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """The probability of each id (vocabulary) to be drawn. counts: how often it is in the train
    split (vocabulary).

    log_uniform: by the place k = 0, 1, .. of its count, log((k + 2) / (k + 1)) / log(vocabulary +
    1), as words whose frequencies follow Zipf's law have it. unigram: as its count plus 1, so that
    any word is drawn.
    """
    if distribution == "unigram":
        return (counts + 1) / (counts + 1).sum()
    place = np.empty(len(counts))
    place[np.argsort(-counts, kind="stable")] = np.arange(len(counts))
    return np.log1p(1 / (place + 1)) / np.log(len(counts) + 1)


class Sampler:
    """Draws `num_samples` ids, by probabilities (vocabulary), of which some may be the same."""

    def __init__(self, probabilities: npt.NDArray[np.float64], num_samples: int) -> None:
        self._cumulative = np.cumsum(probabilities)
        self._num_samples = num_samples
        # Of being drawn once or more, 1 - (1 - q)^n; none is 0.
        certain = probabilities >= 1
        missed = num_samples * np.log1p(-np.where(certain, 0.0, probabilities))
        drawn = np.where(certain, 1.0, -np.expm1(missed))
        self._log_expected = {"cpu": torch.from_numpy(np.log(drawn)).float()}

    def draw(self, key: tuple[int, int]) -> Tensor:
        """The different ids that are drawn, int64, ascending; the same for the same key."""
        # Raw bits: NumPy keeps those of a generator the same for ever.
        bits = np.random.Philox(key=np.array(key, np.uint64)).random_raw(self._num_samples)
        uniform = (bits >> np.uint64(11)) * 2.0**-53  # in [0, 1)
        found = np.searchsorted(self._cumulative, uniform * self._cumulative[-1], side="right")
        return torch.from_numpy(np.unique(found.clip(max=len(self._cumulative) - 1)))

    def log_expected(self, device: torch.device) -> Tensor:
        """log of the probability of each id to be among those drawn, float32 (vocabulary)."""
        if str(device) not in self._log_expected:
            with torch.inference_mode(False):  # autograd saves it for backward later
                self._log_expected[str(device)] = self._log_expected["cpu"].to(device)
        return self._log_expected[str(device)]
