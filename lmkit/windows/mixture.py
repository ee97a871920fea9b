"""The loader of several texts mixed in proportions: an endless stream of documents into lanes.

Each text is read in passes, each pass in an order of its own. A lane that comes to the end of its
document reads the next document of the text that is furthest behind its share of tokens. Nothing is
kept per document, so that memory does not grow with the texts. An epoch is a number of windows
here and lanes continue across its end, so that no document is cut short and none is padded.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch

from lmkit.windows import cuts
from lmkit.windows.window import Passes, Tokens, Window

ROUNDS = 6
MASK64 = (1 << 64) - 1


class Segment(NamedTuple):
    """Positions `offset` to `offset + count` of a document, where position 0 resets the state.

    text: number of its text. document: its number there. start, length: in tokens.
    """

    text: int
    document: int
    start: int
    length: int
    offset: int
    count: int  # type: ignore[assignment]  # hides a method of tuple that nobody calls


@dataclass
class Progress:
    """How far a mixture has been read: documents and tokens of each text, and each lane's document.

    lanes: for each [text, document, start, length, positions read]; empty between two documents.
    """

    taken: list[int]
    tokens: list[int]
    lanes: list[list[int]] = field(default_factory=list)


class MixtureLoader(Passes):
    """Iterates over the windows of an epoch; each process gets its own rows of every window.

    A window's `index` counts on from the first epoch: the state is not reset between epochs.
    """

    def __init__(
        self,
        texts: Sequence[Tokens],
        weights: Sequence[float],
        *,
        eos_id: int,
        num_lanes: int,
        bptt: int,
        seed: int,
        variable_bptt: bool = False,
        epoch_tokens: int | None = None,
        rank: int = 0,
        world_size: int = 1,
        accumulate: int = 1,
        limit: int | None = None,
    ) -> None:
        """weights: shares of the tokens. epoch_tokens: about how many an epoch reads; if None, an
        epoch ends when the first of the texts has been read once. limit: the most windows of an
        epoch. variable_bptt: draw the windows' lengths, and scale the learning rate with them."""
        self.shares = [weight / sum(weights) for weight in weights]
        self.eos_id = eos_id
        self.num_lanes = num_lanes
        self.seed = seed
        self.accumulate = accumulate
        self.world_size = world_size
        share = num_lanes // world_size
        self.rows = slice(rank * share, (rank + 1) * share)
        read = [(text.num_tokens, len(text.document_ends)) for text in texts]
        if epoch_tokens is None:
            epoch_tokens = int(min(n / p for (n, _), p in zip(read, self.shares, strict=True)))
        # A document of n tokens takes n + 1 positions.
        self.efficiency = 1 / sum(
            p * (n + documents) / n for (n, documents), p in zip(read, self.shares, strict=True)
        )
        positions = epoch_tokens / self.efficiency
        self.bptt = min(bptt, math.ceil(positions))  # a window is no longer than an epoch
        self.variable_bptt = variable_bptt
        num_windows = max(round(positions / (num_lanes * self.bptt)), 1)
        if variable_bptt:
            # So many positions of a lane in every epoch, with as many windows as they are cut into.
            self._positions = num_windows * self.bptt
            num_windows = cuts.num_windows(self._positions, self.bptt, drawn=True)
        super().__init__(texts, num_windows, epoch_tokens, limit)
        self._group = self._beginning()  # progress before the update whose windows are being read

    def _windows(self) -> Iterator[Window]:
        lengths = self._lengths(self.epoch)
        while self.position < len(self):
            first = self.position - self.position % self.accumulate
            progress = deepcopy(self._group)
            together = min(self.accumulate, len(self) - first)
            here = lengths[first : first + together]
            rate = sum(here) / (len(here) * self.bptt)
            plans = [self._plan(progress, length) for length in here]
            counts = [num_targets(plan) for plan in plans]
            for number in range(self.position - first, together):
                window = self._window(plans[number], counts[number], sum(counts), rate)
                if number + 1 == together:
                    self._group = progress
                yield window

    def state_dict(self) -> dict[str, Any]:
        """Windows of the epoch already handed out, and the progress when their update began."""
        return super().state_dict() | {"mixture": asdict(self._group)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self._group = Progress(**state["mixture"])

    def documents(self, epoch: int, index: int) -> list[tuple[int, int]]:
        """(text, number) of the documents, in all lanes, that have targets in a window."""
        progress = self._beginning()
        lengths = [length for before in range(epoch) for length in self._lengths(before)]
        *before, last = [*lengths, *self._lengths(epoch)[: index + 1]]
        for length in before:
            self._plan(progress, length)
        segments = [segment for lane in self._plan(progress, last) for segment in lane]
        return sorted({(s.text, s.document) for s in segments if s.offset + s.count > 1})

    def document_names(self, epoch: int, index: int) -> list[str]:
        """The sources' names of the `documents` of a window."""
        return [
            self.texts[text].document_id(number) for text, number in self.documents(epoch, index)
        ]

    def _beginning(self) -> Progress:
        none = [0] * len(self.texts)
        return Progress([*none], [*none], [[] for _ in range(self.num_lanes)])

    def _lengths(self, epoch: int) -> list[int]:
        """The number of positions of each window of an epoch."""
        if not self.variable_bptt:
            return [self.bptt] * len(self)
        edges = cuts.drawn(self._positions, self.bptt, self.seed, epoch)
        lengths: list[int] = np.diff(edges)[: len(self)].tolist()
        return lengths

    def _plan(self, progress: Progress, length: int) -> list[list[Segment]]:
        """The segments that each lane reads in the next window, of so many positions; advances
        `progress`."""
        plan: list[list[Segment]] = []
        for lane in progress.lanes:
            segments = []
            room = length
            while room:
                if not lane:
                    lane[:] = [*self._take(progress), 0]
                count = min(room, lane[3] + 1 - lane[4])
                segments.append(Segment(*lane, count))  # type: ignore[call-arg]
                lane[4] += count
                room -= count
                if lane[4] > lane[3]:
                    lane.clear()
            plan.append(segments)
        return plan

    def _take(self, progress: Progress) -> tuple[int, int, int, int]:
        """The text, number, start and length of the next document; advances `progress`."""
        behind = [
            tokens / share for tokens, share in zip(progress.tokens, self.shares, strict=True)
        ]
        text = behind.index(min(behind))
        ends = self.texts[text].document_ends
        turn, index = divmod(progress.taken[text], len(ends))
        document = shuffled(index, len(ends), mix(mix(mix(self.seed) + text) + turn))
        start = int(ends[document - 1]) if document else 0
        length = int(ends[document]) - start
        progress.taken[text] += 1
        progress.tokens[text] += length
        return text, document, start, length

    def _window(self, plan: list[list[Segment]], num: int, num_update: int, rate: float) -> Window:
        own = plan[self.rows]
        length = sum(segment.count for segment in own[0])
        tokens = np.full((len(own), length), self.eos_id, np.int64)
        targets = tokens.copy()
        resets, mask = np.zeros((2, *tokens.shape), bool)
        for row, segments in enumerate(own):
            column = 0
            for text, _, start, _, offset, count in segments:
                read = self.texts[text].tokens
                # Position p of a document has token p - 2 as its input and p - 1 as its target.
                first, stop = max(offset, 1), offset + count
                if first < stop:
                    at = slice(column + first - offset, column + count)
                    targets[row, at] = read[start + first - 1 : start + stop - 1]
                    known = max(first, 2)  # the input of position 1 is `<eos>`
                    at = slice(column + known - offset, column + count)
                    tokens[row, at] = read[start + known - 2 : start + stop - 2]
                mask[row, column + first - offset : column + count] = True
                resets[row, column] = offset == 0
                column += count
        weight = mask * (self.accumulate * self.world_size / max(num_update, 1))
        return Window(
            torch.from_numpy(tokens),
            torch.from_numpy(targets),
            torch.from_numpy(resets),
            torch.from_numpy(mask),
            torch.from_numpy(weight.astype(np.float32)),
            self.epoch * len(self) + self.position,
            num,
            self.epoch,
            self.rows.start,
            self.num_lanes,
            rate,
        )


def num_targets(plan: list[list[Segment]]) -> int:
    """The number of real targets of a window: all positions except those that reset."""
    return sum(s.count - (s.offset == 0) for segments in plan for s in segments)


def shuffled(index: int, size: int, key: int) -> int:
    """The element at `index` of a permutation of range(size) drawn by `key`, without a table.

    A Feistel network over a power of four, applied again until the result is below size (cycle
    walking, Black and Rogaway 2002).
    """
    half = max(((size - 1).bit_length() + 1) // 2, 1)
    low = (1 << half) - 1
    while True:
        left, right = index >> half, index & low
        for number in range(ROUNDS):
            left, right = right, left ^ mix(right + mix(key + number)) & low
        index = left << half | right
        if index < size:
            return index


def mix(value: int) -> int:
    """A 64-bit hash of a number (splitmix64, Steele et al. 2014)."""
    value = (value + 0x9E3779B97F4A7C15) & MASK64
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & MASK64
    value = (value ^ value >> 27) * 0x94D049BB133111EB & MASK64
    return value ^ value >> 31
