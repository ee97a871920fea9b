"""Documents to lanes to windows: which token stands at which position of which batch.

A lane is a queue of documents read end to end; a window is the next `bptt` positions of
every lane. What differs between the protocols is where a lane is reset:

- `document`: before every document, `sentence`: before every line. A unit (document or line)
  of n tokens takes n + 1 positions: a reset position, then inputs `[<eos>, x_1 .. x_{n-1}]`
  with targets `[x_1 .. x_n]`.
- `stream`: never. The text is cut into `num_lanes` contiguous pieces of (almost) equal length;
  the first input of a piece is the token before it.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from lmkit.windows import Passes, Tokens, Window

Protocol = Literal["document", "sentence", "stream"]

Integers = npt.NDArray[np.int64]

# Units that are put into lanes at a time.
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
        return len(self.lane_units) - 1

    @property
    def unit_ends(self) -> Integers:
        """Where each unit ends when the lanes are laid end to end, in positions."""
        return np.cumsum(self.unit_lengths + self.lead)

    @property
    def lane_starts(self) -> Integers:
        """Where each lane starts when the lanes are laid end to end, and where the last ends."""
        return np.concatenate([[0], self.unit_ends])[self.lane_units]

    @property
    def lengths(self) -> Integers:
        """Positions of each lane."""
        return np.diff(self.lane_starts)

    @property
    def efficiency(self) -> float:
        """Share of all positions, up to the end of the longest lane, that are real targets."""
        return float(self.unit_lengths.sum() / (self.num_lanes * self.lengths.max()))

    def num_targets(self, bptt: int) -> Integers:
        """Real targets of each window of `bptt` positions."""
        lengths = self.lengths
        windows = np.arange(-(-int(lengths.max()) // bptt))
        # Lanes still running at a position, summed over the window, less its reset positions.
        ended = np.sort(lengths)
        filled = np.concatenate([[0], np.cumsum(ended)])
        edges = np.append(windows, len(windows)) * bptt
        shorter = np.searchsorted(ended, edges)
        read = filled[shorter] + (self.num_lanes - shorter) * edges
        counts = np.diff(read)
        if self.lead:
            lane_of_unit = np.repeat(np.arange(self.num_lanes), np.diff(self.lane_units))
            begins = self.unit_ends - self.unit_lengths - self.lead
            counts -= np.bincount(
                (begins - self.lane_starts[lane_of_unit]) // bptt, minlength=len(windows)
            )
        return counts


def plan_lanes(
    ends: npt.ArrayLike, num_lanes: int, rng: np.random.Generator | None = None
) -> Lanes:
    """Put units into lanes, longest first into the emptiest lane, then shuffle each lane.

    ends: exclusive token end of each unit. Without `rng` the order in a lane is that of the
    text and the lanes are sorted by length, longest first. The lengths of the lanes, and so
    the number of windows, do not depend on `rng`.
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
        place = np.empty(num_lanes, dtype=np.int64)
        place[[lane for _, lane in sorted(filled, key=lambda lane: -lane[0])]] = np.arange(
            num_lanes
        )
        lane_of_unit = place[lane_of_unit]
        order = np.argsort(lane_of_unit, kind="stable")
    else:
        order = np.lexsort((rng.permutation(len(lengths)), lane_of_unit))
    lane_units = np.searchsorted(lane_of_unit[order], np.arange(num_lanes + 1))
    return Lanes((ends - lengths)[order], lengths[order], lane_units, lead=1)


def cut_stream(num_tokens: int, num_lanes: int) -> Lanes:
    """Cut the text into contiguous lanes whose lengths differ by at most one, longest first."""
    bounds = np.append(0, np.cumsum((num_tokens + np.arange(num_lanes)[::-1]) // num_lanes))
    return Lanes(bounds[:-1], np.diff(bounds), np.arange(num_lanes + 1), lead=0)


class WindowLoader(Passes):
    """Iterates over the windows of one split, this process's rows of them.

    A training loader keeps all rows to the end and shuffles by (seed, epoch); an evaluation
    loader keeps the order and drops the rows that have ended.
    """

    def __init__(
        self,
        store: Tokens,
        *,
        eos_id: int,
        protocol: Protocol,
        num_lanes: int,
        bptt: int,
        seed: int | None,
        rank: int = 0,
        world_size: int = 1,
        accumulate: int = 1,
        limit: int | None = None,
        reshuffle: bool = True,
    ) -> None:
        """`seed` None makes an evaluation loader; `accumulate` windows share one update. limit: an
        epoch is no more windows than that. reshuffle: false keeps the order of the first epoch."""
        self.store = store
        self.eos_id = eos_id
        self.protocol = protocol
        self.num_lanes = num_lanes
        self.seed = seed
        self.reshuffle = reshuffle
        self.rows = slice(rank, None, world_size)
        if seed is not None:
            share = num_lanes // world_size
            self.rows = slice(rank * share, (rank + 1) * share)
        self.accumulate = accumulate
        self.world_size = world_size
        lanes = self.lanes(0)
        self.efficiency = lanes.efficiency
        # A longer window would hold no more, and its products not fit in 64 bits.
        self.bptt = min(bptt, max(int(lanes.lengths.max()), 1))
        read = lanes.lengths.max() if seed is not None else lanes.lengths[self.rows].max(initial=0)
        super().__init__([store], -(-int(read) // self.bptt), store.num_tokens, limit)

    def lanes(self, epoch: int) -> Lanes:
        """The lanes of an epoch over all processes: a pure function of (seed, epoch)."""
        if self.protocol == "stream":
            return cut_stream(self.store.num_tokens, self.num_lanes)
        ends = self.store.document_ends if self.protocol == "document" else self.store.line_ends
        order = epoch if self.reshuffle else 0
        rng = None if self.seed is None else np.random.default_rng([self.seed, order])
        return plan_lanes(ends, self.num_lanes, rng)

    def documents(self, epoch: int, index: int) -> list[int]:
        """Numbers of the documents, in all lanes, of which a window has targets."""
        lanes = self.lanes(epoch)
        begins = lanes.lane_starts[:-1] + index * self.bptt
        ends = np.minimum(begins + self.bptt, lanes.lane_starts[1:])
        found: set[int] = set()
        for begin, end in zip(begins.tolist(), ends.tolist(), strict=True):
            position = np.arange(begin, max(begin, end))
            unit = np.searchsorted(lanes.unit_ends, position, side="right")
            token = position + (lanes.unit_starts + lanes.unit_lengths - lanes.unit_ends)[unit]
            token = token[token >= lanes.unit_starts[unit]]
            found |= set(np.searchsorted(self.store.document_ends, token, side="right").tolist())
        return sorted(found)

    def document_names(self, epoch: int, index: int) -> list[str]:
        """What the sources call the `documents` of a window."""
        return [self.store.document_id(number) for number in self.documents(epoch, index)]

    def _windows(self) -> Iterator[Window]:
        reader = _Reader(self, self.lanes(self.epoch))
        for index in range(self.position, len(self)):
            yield reader.window(index)


class _Reader:
    """Gathers the windows of one epoch out of the token map."""

    def __init__(self, loader: WindowLoader, lanes: Lanes) -> None:
        self.bptt = loader.bptt
        self.eos_id = loader.eos_id
        self.epoch = loader.epoch
        self.first_lane = loader.rows.start
        self.num_lanes = loader.num_lanes
        tokens = loader.store.tokens
        self.tokens = np.asarray(tokens) if isinstance(tokens, Sequence | np.ndarray) else tokens
        self.lead = lanes.lead
        self.unit_ends = lanes.unit_ends
        # Token index minus position, for every position of a unit.
        self.shift = lanes.unit_starts + lanes.unit_lengths - self.unit_ends
        self.unit_starts = lanes.unit_starts
        self.lane_starts = lanes.lane_starts[:-1][loader.rows]
        self.lengths = lanes.lengths[loader.rows]
        self.drop_ended = loader.seed is None
        self.longest = int((self.lengths if self.drop_ended else lanes.lengths).max(initial=0))
        self.num_targets = lanes.num_targets(self.bptt)[: len(loader)]
        updates = np.arange(len(self.num_targets)) // loader.accumulate
        self.targets_of_update = np.bincount(updates, self.num_targets)[updates]
        # Lightning divides by `accumulate`, DDP by the number of processes.
        self.scale = loader.accumulate * loader.world_size

    def window(self, index: int) -> Window:
        begin = index * self.bptt
        rows = int((self.lengths > begin).sum()) if self.drop_ended else len(self.lengths)
        time = min(self.bptt, self.longest - begin)
        lengths = self.lengths[:rows, None]
        place = np.arange(begin, begin + time)[None, :]  # (1, time)
        inside = place < lengths  # (rows, time)
        position = self.lane_starts[:rows, None] + np.minimum(place, np.maximum(lengths - 1, 0))
        unit = np.searchsorted(self.unit_ends, position, side="right")
        unit = np.minimum(unit, len(self.unit_ends) - 1)  # the empty lanes at the end
        token = position + self.shift[unit]
        first = token - self.unit_starts[unit]  # place in the unit; -1 at a reset position
        resets = inside & (first < 0)
        mask = inside & (first >= 0)
        fresh = first <= 0 if self.lead else token == 0
        targets = np.where(mask, self.tokens.take(token, mode="clip"), self.eos_id)
        tokens = np.where(mask & ~fresh, self.tokens.take(token - 1, mode="clip"), self.eos_id)
        weight = mask * (self.scale / max(self.targets_of_update[index], 1))
        return Window(
            torch.from_numpy(tokens.astype(np.int64)),
            torch.from_numpy(targets.astype(np.int64)),
            torch.from_numpy(resets),
            torch.from_numpy(mask),
            torch.from_numpy(weight.astype(np.float32)),
            index,
            int(self.num_targets[index]),
            self.epoch,
            self.first_lane,
            self.num_lanes,
        )
