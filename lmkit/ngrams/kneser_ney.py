"""Interpolated modified Kneser-Ney estimation (Chen and Goodman 1999, section 3).

The definition is that of KenLM's lmplz (Heafield et al. 2013): with a(hw) the adjusted count of an
n-gram, D one of three discounts of its order by whether a is 1, 2 or more, and h' the context h
without its first symbol,

    p(w | h) = (a(hw) - D(a(hw))) / sum_x a(hx) + gamma(h) p(w | h')
    gamma(h) = sum_x D(a(hx)) / sum_x a(hx)

and below order 1 the uniform distribution over the vocabulary.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from lmkit.ngrams.counts import Level
from lmkit.ngrams.tables import Tables

log = logging.getLogger(__name__)

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

CHUNK = 2**22  # n-grams that are computed at a time
FALLBACK = (0.5, 1.0, 1.5)  # of lmplz --discount_fallback


class Discounts(NamedTuple):
    """What is subtracted from adjusted counts of 1, of 2, and of 3 or more. missing: why they are
    FALLBACK and not estimated, as the end of a sentence."""

    one: float
    two: float
    more: float
    missing: str = ""

    @property
    def by_count(self) -> Floats:
        """Those of the counts 0, 1, 2, and 3 or more."""
        return np.array([0.0, self.one, self.two, self.more])


def discounts(adjusted: npt.NDArray[np.int32]) -> Discounts:
    """The discounts of an order, of which `adjusted` are the counts (Chen and Goodman 1999,
    equation 26), or FALLBACK where there are too few of them."""
    n = np.bincount(np.minimum(adjusted, 5), minlength=6).tolist()
    if absent := [count for count in (1, 2, 3) if not n[count]]:
        return Discounts(*FALLBACK, missing=f"no n-gram has an adjusted count of {absent[0]}")
    y = n[1] / (n[1] + 2 * n[2])
    estimated = [k - (k + 1) * y * n[k + 1] / n[k] for k in (1, 2, 3)]
    for k, discount in enumerate(estimated, start=1):
        if discount <= 0:
            what = f"the discount of an adjusted count of {k} would be {discount:.2f}"
            return Discounts(*FALLBACK, missing=what)
    return Discounts(*estimated)


class _Estimates(NamedTuple):
    """One order: probabilities (n-grams,) by id, backoff weights of the contexts, discounts."""

    prob: Floats
    gamma: Floats
    discounts: Discounts


def estimated(
    levels: Iterable[Level], vocabulary_size: int, prune: Sequence[int] = ()
) -> tuple[Tables, list[Discounts]]:
    """The model of counted n-grams, and the discounts of each order.

    prune: by order, n-grams that occur so often or less are left out of the model, though not of
    the counts (lmplz --prune); the last holds for all further orders.
    """
    base = vocabulary_size + 1
    keys, log_prob, log_backoff, found = [], [], [], []
    lower = np.zeros(0)
    number: Integers | None = None  # of the n-grams of the order below, among those that stay
    for level in levels:
        least = prune[min(level.order, len(prune)) - 1] if prune else 0
        kept = level.raw > least if least else None
        if level.order == 1:
            estimates = _unigrams(level, vocabulary_size)
        else:
            estimates = _ngrams(level, lower, base, kept)
            backoff = np.log(estimates.gamma).astype(np.float32)
            log_backoff.append(backoff if number is None else backoff[number >= 0])
            numbered = _renumbered(level.keys, base, number)
            keys.append(numbered if kept is None else numbered[kept])
        found.append(estimates.discounts)
        lower = estimates.prob
        logs = _log(lower)
        log_prob.append(logs if kept is None else logs[kept])
        number = None if kept is None else np.where(kept, np.cumsum(kept) - 1, -1)
        del level, estimates  # their memory is needed for the next order
    return Tables(vocabulary_size, tuple(keys), tuple(log_prob), tuple(log_backoff)), found


def _log(prob: Floats) -> npt.NDArray[np.float32]:
    """Natural logarithms; of n-grams that are left out, whose value has no use, of 1."""
    logs = np.empty(len(prob), np.float32)
    for begin in range(0, len(prob), CHUNK):
        part = prob[begin : begin + CHUNK]
        logs[begin : begin + CHUNK] = np.log(np.where(part > 0, part, 1))
    return logs


def _renumbered(keys: Integers, base: int, number: Integers | None) -> Integers:
    """Keys with the prefixes' ids among those that stay."""
    if number is None:
        return keys
    prefix, last = np.divmod(keys, base)
    return number[prefix] * base + last


def _unigrams(level: Level, vocabulary_size: int) -> _Estimates:
    adjusted = level.adjusted[:vocabulary_size]
    found = discounts(adjusted)
    taken = found.by_count[np.minimum(adjusted, 3)]
    total = adjusted.sum(dtype=np.int64)
    share = (adjusted - taken) / total
    return _Estimates(share + taken.sum() / total / vocabulary_size, np.ones(0), found)


def _ngrams(
    level: Level, lower: Floats, base: int, kept: npt.NDArray[np.bool_] | None
) -> _Estimates:
    """lower: probabilities of the order below, by id. kept: what is not left out."""
    num_contexts = base if level.order == 2 else len(lower)
    found = discounts(level.adjusted)
    total, taken = np.zeros(num_contexts), np.zeros(num_contexts)
    for part, prefix, count, discount in _chunks(level, base, found):
        first = prefix[0]  # prefixes ascend
        here = slice(first, prefix[-1] + 1)
        total[here] += np.bincount(prefix - first, count)
        # The whole count of what is left out goes to the order below.
        given_up = discount if kept is None else np.where(kept[part], discount, count)
        taken[here] += np.bincount(prefix - first, given_up)
    gamma = np.divide(taken, total, out=np.ones(num_contexts), where=total > 0)
    prob = np.empty(len(level.keys))
    for part, prefix, count, discount in _chunks(level, base, found):
        share = (count - discount) / total[prefix]
        prob[part] = share + gamma[prefix] * lower[level.suffix[part]]
    return _Estimates(prob, gamma, found)


def _chunks(
    level: Level, base: int, found: Discounts
) -> Iterator[tuple[slice, Integers, Floats, Floats]]:
    """Ranges of ids with their prefixes, adjusted counts and discounts."""
    for begin in range(0, len(level.keys), CHUNK):
        part = slice(begin, begin + CHUNK)
        count = level.adjusted[part].astype(np.float64)
        discount = found.by_count[np.minimum(level.adjusted[part], 3)]
        yield part, level.keys[part] // base, count, discount
