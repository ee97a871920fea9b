"""Ensembles: the probabilities of several models averaged, token by token.

p(x) = sum_m weight_m p_m(x). Of each model no more is needed than the nll of the text's tokens, so
that models of any kind and size go together, if they have one vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lmkit.errors import UserError
from lmkit.ranges import Fraction

Floats = npt.NDArray[np.floating]

TOKENS = 2**20  # that are looked at together
ROUNDS = 1000  # of EM at most
CLOSE = 1e-7  # a change of no weight by more ends it


@dataclass(frozen=True)
class Ensemble:
    """The settings of an ensemble.

    runs: the others, named as RUN is.
    weights: of RUN and of each of the others, which add up to 1; null: equal.
    """

    runs: list[str]
    weights: list[Fraction] | None = None

    def check(self) -> None:
        """Raise UserError for weights that are not those of these runs."""
        if not self.runs:
            raise UserError("ensemble=[]: name at least one other run")
        if self.weights is None:
            return
        shown = f"ensemble_weights={self.weights}".replace(" ", "")
        if len(self.weights) != (number := 1 + len(self.runs)):
            raise UserError(f"{shown}: has {len(self.weights)} for {number} runs, RUN's first")
        if not math.isclose(total := math.fsum(self.weights), 1, abs_tol=1e-6):
            raise UserError(f"{shown}: add up to {total:g}, must add up to 1")


def mixture(nlls: Sequence[Floats], weights: Sequence[float]) -> npt.NDArray[np.float64]:
    """The nll of sum_m weights[m] p_m, float64 (tokens,); nlls: of each model; all in nats."""
    with np.errstate(divide="ignore"):
        logs = np.log(np.asarray(weights, np.float64))
    total = np.full(len(nlls[0]), -np.inf)
    for log_weight, nll in zip(logs, nlls, strict=True):
        np.logaddexp(total, log_weight - nll.astype(np.float64), out=total)
    return -total


def best_weights(nlls: Sequence[Floats]) -> list[float]:
    """The weights with which the mixture's nll over all tokens is lowest, by expectation
    maximisation from equal ones: it is convex, so that there is one minimum.

    nlls: of each model, (tokens,), in nats, infinite where a token has no probability.
    """
    weights = np.full(len(nlls), 1 / len(nlls))
    num_tokens = len(nlls[0])
    for _ in range(ROUNDS):
        shares = np.zeros_like(weights)
        for begin in range(0, num_tokens, TOKENS):
            some = np.stack([nll[begin : begin + TOKENS] for nll in nlls]).astype(np.float64)
            some = some[:, np.isfinite(some).any(axis=0)]
            # Relative to the likeliest: the others may become 0, the sum does not.
            joint = weights[:, None] * np.exp(some.min(axis=0) - some)
            shares += (joint / joint.sum(axis=0)).sum(axis=1)
        before, weights = weights, shares / shares.sum()
        if np.abs(weights - before).max() < CLOSE:
            break
    # Between models that are almost alike it is slow: the mixture is to be no worse than the best.
    known = np.isfinite(np.stack(nlls)).any(axis=0)
    alone = [float(nll[known].mean(dtype=np.float64)) for nll in nlls] if known.any() else []
    if alone and min(alone) < mixture([nll[known] for nll in nlls], weights.tolist()).mean():
        weights = np.eye(len(nlls))[np.argmin(alone)]
    return [float(weight) for weight in weights]
