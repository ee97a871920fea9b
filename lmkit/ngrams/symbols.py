"""A text as symbols: its tokens, and one more symbol for the beginning of a unit."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

# The words of ARPA files for what stands before the first token of a text, and for `<eos>`.
START, END = "<s>", "</s>"


class Symbols(NamedTuple):
    """What a model reads of a text, in order.

    ids: (positions,) int32, tokens, and `vocabulary_size` for the beginning of a unit. depth:
    (positions,) uint8, how many symbols of its unit there are up to each, itself counted, but at
    most `order` (or 2). At depth 1 is what is an input alone; every other symbol is a target once.
    """

    ids: npt.NDArray[np.int32]
    depth: npt.NDArray[np.uint8]
    vocabulary_size: int
    order: int

    @property
    def base(self) -> int:
        """The number of symbols; the key of an n-gram is id of its prefix x base + last symbol."""
        return self.vocabulary_size + 1


def read_symbols(
    tokens: npt.ArrayLike,
    unit_ends: npt.ArrayLike | None,
    *,
    eos_id: int,
    vocabulary_size: int,
    order: int,
) -> Symbols:
    """The symbols that the windows of a text have as inputs and targets.

    unit_ends: exclusive ends of what is read from the zero state, documents or lines; None: the
    text is one stream, before which stands an ordinary `<eos>`.
    """
    array: npt.NDArray[Any] = np.asarray(tokens)
    ids = array.astype(np.int32)
    if unit_ends is None:
        ids = np.insert(ids, 0, eos_id)
        begins, ends = np.zeros(1, np.int64), np.array([len(ids)])
    else:
        stops = np.asarray(unit_ends).astype(np.int64)
        starts = np.append(0, stops[:-1])
        ids = np.insert(ids, starts, np.int32(vocabulary_size))
        before = np.arange(len(stops))
        begins, ends = starts + before, stops + before + 1
    most = max(order, 2)
    depth = np.full(len(ids), most, np.uint8)
    for below in range(min(most - 1, int((ends - begins).max(initial=0)))):
        inside = begins + below < ends
        depth[begins[inside] + below] = below + 1
    return Symbols(ids, depth, vocabulary_size, order)
