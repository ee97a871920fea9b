"""From documents to lanes: which token stands at which position of which batch.

A lane is a queue of documents read end to end; a window is the next `bptt` positions of
every lane. What differs between the protocols is where a lane is reset:

- `document`: before every document, `sentence`: before every line. A unit (document or line)
  of n tokens takes n + 1 positions: a reset position, then inputs `[<eos>, x_1 .. x_{n-1}]`
  with targets `[x_1 .. x_n]`.
- `stream`: never. The text is cut into `num_lanes` contiguous lanes of (almost) equal length;
  the first input of a lane is the token before it.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

Protocol = Literal["document", "sentence", "stream"]

Integers = npt.NDArray[np.int64]

# Units that are assigned to lanes at a time.
PLANNED = 2**16


@dataclass(frozen=True)
class Lanes:
    """The reading order of one epoch; lane l reads units `lane_units[l]:lane_units[l + 1]`.

    unit_starts, unit_lengths: first token and number of tokens of each unit, in reading order.
    lead: positions before the first token of a unit, 1 where units are reset, else 0.
    """

    unit_starts: Integers
    unit_lengths: Integers
    lane_units: Integers
    lead: int

    @property
    def num_lanes(self) -> int:
        """Those that stay empty counted too."""
        return len(self.lane_units) - 1

    @property
    def unit_ends(self) -> Integers:
        """The position at which each unit ends when the lanes are laid end to end."""
        return np.cumsum(self.unit_lengths + self.lead)

    @property
    def lane_starts(self) -> Integers:
        """The position at which each lane starts when they are laid end to end, then their end."""
        return np.concatenate([[0], self.unit_ends])[self.lane_units]

    @property
    def lengths(self) -> Integers:
        """The number of positions of each lane."""
        return np.diff(self.lane_starts)

    @property
    def tokens(self) -> Integers:
        """The token that is the target at each position, -1 where none is: (lanes, longest)."""
        tokens = np.full((self.num_lanes, int(self.lengths.max(initial=0))), -1)
        unit = np.repeat(np.arange(len(self.unit_ends)), self.unit_lengths)
        first = np.cumsum(self.unit_lengths) - self.unit_lengths
        within = np.arange(len(unit)) - first[unit]
        position = (self.unit_ends - self.unit_lengths)[unit] + within
        lane = np.searchsorted(self.lane_starts, position, side="right") - 1
        tokens[lane, position - self.lane_starts[lane]] = self.unit_starts[unit] + within
        return tokens

    @property
    def efficiency(self) -> float:
        """Share of all positions, up to the end of the longest lane, that are real targets."""
        return float(self.unit_lengths.sum() / (self.num_lanes * self.lengths.max()))

    def num_targets(self, edges: Integers) -> Integers:
        """The number of real targets in each window; edges: where each begins, then the end."""
        lengths = self.lengths
        # Lanes still running at a position, summed over the window, less its reset positions.
        ended = np.sort(lengths)
        filled = np.concatenate([[0], np.cumsum(ended)])
        shorter = np.searchsorted(ended, edges)
        read = filled[shorter] + (self.num_lanes - shorter) * edges
        counts = np.diff(read)
        if self.lead:
            lane_of_unit = np.repeat(np.arange(self.num_lanes), np.diff(self.lane_units))
            begins = self.unit_ends - self.unit_lengths - self.lead
            at = begins - self.lane_starts[lane_of_unit]
            window = np.searchsorted(edges, at, side="right") - 1
            counts -= np.bincount(window, minlength=len(counts))
        return counts


def plan_lanes(
    ends: npt.ArrayLike, num_lanes: int, rng: np.random.Generator | None = None
) -> Lanes:
    """Assign units to lanes, longest first and always to the emptiest lane, then shuffle each lane.

    ends: exclusive token end of each unit. Without `rng` units stay in the order of the text
    and the lanes are sorted by length, longest first. The lengths of the lanes, and so the
    number of windows, do not depend on `rng`.
    """
    ends = np.asarray(ends, dtype=np.int64)
    lengths = np.diff(ends, prepend=0)
    ties = np.arange(len(lengths)) if rng is None else rng.permutation(len(lengths))
    longest_first = np.lexsort((ties, -lengths))
    lane_of_unit = np.empty(len(lengths), dtype=np.int64)
    filled = [(0, lane) for lane in range(num_lanes)]
    for begin in range(0, len(lengths), PLANNED):  # as Python's integers, few at a time
        units = longest_first[begin : begin + PLANNED]
        chosen = []
        for length in lengths[units].tolist():
            load, lane = filled[0]
            chosen.append(lane)
            heapq.heapreplace(filled, (load + length + 1, lane))
        lane_of_unit[units] = chosen
    if rng is None:
        row_of_lane = np.empty(num_lanes, dtype=np.int64)
        row_of_lane[[lane for _, lane in sorted(filled, key=lambda lane: -lane[0])]] = np.arange(
            num_lanes
        )
        lane_of_unit = row_of_lane[lane_of_unit]
        order = np.argsort(lane_of_unit, kind="stable")
    else:
        order = np.lexsort((rng.permutation(len(lengths)), lane_of_unit))
    lane_units = np.searchsorted(lane_of_unit[order], np.arange(num_lanes + 1))
    return Lanes((ends - lengths)[order], lengths[order], lane_units, lead=1)


def cut_stream(num_tokens: int, num_lanes: int) -> Lanes:
    """Cut the text into contiguous lanes whose lengths differ by at most one, longest first."""
    bounds = np.append(0, np.cumsum((num_tokens + np.arange(num_lanes)[::-1]) // num_lanes))
    return Lanes(bounds[:-1], np.diff(bounds), np.arange(num_lanes + 1), lead=0)
