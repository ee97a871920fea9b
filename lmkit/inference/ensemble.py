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
CLOSE = 1e-7  # nats a token above the lowest nll that end it


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
    """The weights with which the mixture's nll over all tokens is lowest, to `CLOSE`: it is convex,
    so that there is one minimum. By expectation maximisation from equal ones, in longer and longer
    steps while they help (Salakhutdinov and Roweis 2003).

    nlls: of each model, (tokens,), in nats, infinite where a token has no probability.
    """
    weights = kept = np.full(len(nlls), 1 / len(nlls))
    factors, lowest, length = np.ones(len(nlls)), np.inf, 1.0
    for _ in range(ROUNDS):
        nll, found = _nll_and_factors(nlls, weights)
        if nll <= lowest:
            lowest, kept, factors, length = nll, weights, found, 1.5 * length
            if found.max() < 1 + CLOSE:  # no other weights are better by more, as it is convex
                break
        else:
            length = 1.0
        with np.errstate(divide="ignore"):
            logs = np.log(kept) + length * np.log(factors)
        weights = np.exp(logs - logs.max())
        weights /= weights.sum()
    weights = kept
    return [float(weight) for weight in weights]


def _nll_and_factors(
    nlls: Sequence[Floats], weights: npt.NDArray[np.float64]
) -> tuple[float, npt.NDArray[np.float64]]:
    """The mean nll of a mixture, and for each model the mean of p_m over that of the mixture, by
    which a step of expectation maximisation multiplies its weight."""
    total, sums, count = 0.0, np.zeros(len(nlls)), 0
    for begin in range(0, len(nlls[0]), TOKENS):
        some = np.stack([nll[begin : begin + TOKENS] for nll in nlls]).astype(np.float64)
        some = some[:, np.isfinite(some).any(axis=0)]
        least = some.min(axis=0)
        relative = np.exp(least - some)  # to the likeliest: others may become 0, the sum does not
        mixed = weights @ relative
        with np.errstate(divide="ignore", invalid="ignore"):  # a step too long: an infinite nll
            total += float((least - np.log(mixed)).sum())
            sums += (relative / mixed).sum(axis=1)
        count += some.shape[1]
    return total / max(count, 1), sums / max(count, 1)
