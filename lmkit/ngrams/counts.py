"""Counts n-grams of growing order by sorting 64-bit keys, some positions at a time.

An n-gram's key is (id of its first n - 1 symbols) x base + its last symbol; its id is its rank
among the keys of its order. So every key fits in 64 bits, whatever the order, and none collide.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from lmkit.ngrams.symbols import Symbols

Integers = npt.NDArray[np.int64]
Ids = npt.NDArray[np.int32]
Advance = Callable[[int], None]

SORTED = 2**23  # positions whose keys are sorted at a time, in a text of up to 16 times as many


class Level(NamedTuple):
    """The n-grams of one order, by id.

    keys: (n-grams,) int64, ascending. raw: how often each occurs as a target and the symbols before
    it. adjusted: what Kneser-Ney counts in its place: of the highest order raw; of the others the
    number of different symbols before it, and each occurrence that has nothing before it. suffix:
    the id, in the order below, of all but the first symbol. Of order 1 keys and suffix are the
    symbols.
    """

    order: int
    keys: Integers
    raw: Ids
    adjusted: Ids
    suffix: Ids


def counted(symbols: Symbols, advance: Advance | None = None) -> Iterator[Level]:
    """The orders of a text in turn, from 1 to `symbols.order`; each is complete when it comes.

    advance: called with the number of positions counted so far, over all orders.
    """
    advance = advance or (lambda positions: None)
    ids = symbols.ids  # of the n-gram of the order below that ends at each position
    raw = _bincount(ids[symbols.depth > 1], symbols.base)
    every = np.arange(symbols.base)
    below = Level(1, every, raw, raw, every.astype(np.int32))
    advance(len(ids))
    for order in range(2, symbols.order + 1):
        next_ids = np.zeros_like(ids)
        num_below = len(below.keys)
        level = _joined(order, _shares(symbols, ids, num_below, order, next_ids, advance))
        adjusted = _bincount(level.suffix, num_below)
        if order > 2:  # else only the symbol that is no target has nothing before it
            adjusted += _bincount(ids[symbols.depth == order - 1], num_below)
        yield below._replace(adjusted=adjusted)
        below, ids = level, next_ids
    yield below


def _bincount(ids: Ids, size: int) -> Ids:
    return np.bincount(ids, minlength=size).astype(np.int32)


def _joined(order: int, shares: Iterable[tuple[Integers, Ids, Ids]]) -> Level:
    keys, raw, suffix = (np.concatenate(column) for column in zip(*shares, strict=True))
    return Level(order, keys, raw, raw, suffix)


def _shares(
    symbols: Symbols, ids: Ids, num_below: int, order: int, next_ids: Ids, advance: Advance
) -> Iterator[tuple[Integers, Ids, Ids]]:
    """Keys, counts and suffixes of the n-grams of an order, for a range of prefixes at a time.

    ids: of the n-gram of the order below that ends at each position. next_ids: is given those of
    this order.
    """
    whole, deep = len(ids), symbols.depth[1:] >= order
    bounds = _bounds(np.bincount(ids[:-1], minlength=num_below), max(SORTED, whole // 16))
    known, read = 0, (order - 1) * whole
    for begin, end in pairwise(bounds):
        before = ids[:-1]
        at = np.flatnonzero(deep & (before >= begin) & (before < end)) + 1
        keys = before[at - 1].astype(np.int64) * symbols.base + symbols.ids[at]
        ranked = np.argsort(keys)
        keys, at = keys[ranked], at[ranked]
        first = np.flatnonzero(np.diff(keys, prepend=-1))
        counts = np.diff(first, append=len(keys)).astype(np.int32)
        next_ids[at] = np.repeat(np.arange(known, known + len(first), dtype=np.int32), counts)
        known += len(first)
        read += len(at)
        yield keys[first], counts, ids[at[first]]
        advance(read)


def _bounds(counts: Integers, most: int) -> list[int]:
    """Bounds of ranges of ids, each with so many positions at most, if it has more than one id."""
    upto = np.append(0, np.cumsum(counts))
    bounds = [0]
    while bounds[-1] < len(counts):
        last = int(np.searchsorted(upto, upto[bounds[-1]] + most, side="right")) - 1
        bounds.append(max(last, bounds[-1] + 1))
    return bounds
