"""From lanes to windows: the loader that reads a text in the order of its lanes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from lmkit.windows import cuts
from lmkit.windows.lanes import Integers, Lanes, Protocol, cut_stream, plan_lanes
from lmkit.windows.window import Passes, Tokens, Window


class WindowLoader(Passes):
    """Iterates over the windows of one split; each process gets its own rows of every window.

    A training loader keeps all rows to the end and shuffles by (seed, epoch); an evaluation
    loader keeps the order of the text and drops rows whose lane has ended.
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
        variable_bptt: bool = False,
        rank: int = 0,
        world_size: int = 1,
        accumulate: int = 1,
        limit: int | None = None,
        reshuffle: bool = True,
    ) -> None:
        """`seed` None makes an evaluation loader; `accumulate` windows share one update. limit: the
        most windows of an epoch. reshuffle: false keeps the order of the first epoch.
        variable_bptt: draw the lengths of training's windows, and scale the learning rate by
        them."""
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
        # A longer window would hold no more, and products with it could exceed 64 bits.
        self.bptt = min(bptt, max(int(lanes.lengths.max()), 1))
        self.variable_bptt = variable_bptt and seed is not None
        read = lanes.lengths.max() if seed is not None else lanes.lengths[self.rows].max(initial=0)
        num_windows = cuts.num_windows(int(read), self.bptt, drawn=self.variable_bptt)
        super().__init__([store], num_windows, store.num_tokens, limit)

    def lanes(self, epoch: int) -> Lanes:
        """The lanes of an epoch over all processes: a pure function of (seed, epoch)."""
        if self.protocol == "stream":
            return cut_stream(self.store.num_tokens, self.num_lanes)
        ends = self.store.document_ends if self.protocol == "document" else self.store.line_ends
        rng = None
        if self.seed is not None:
            rng = np.random.default_rng([self.seed, self._order(epoch)])
        return plan_lanes(ends, self.num_lanes, rng)

    def edges(self, epoch: int, positions: int) -> Integers:
        """Where each window of an epoch begins, then the end, of lanes of up to so many positions:
        a pure function of (seed, epoch)."""
        if not self.variable_bptt:
            return cuts.equal(positions, self.bptt)
        assert self.seed is not None
        return cuts.drawn(positions, self.bptt, self.seed, self._order(epoch))

    def _order(self, epoch: int) -> int:
        """The epoch whose order an epoch has."""
        return epoch if self.reshuffle else 0

    def documents(self, epoch: int, index: int) -> list[int]:
        """The numbers of the documents, in all lanes, that have targets in a window."""
        lanes = self.lanes(epoch)
        edges = self.edges(epoch, int(lanes.lengths.max()))
        begins = lanes.lane_starts[:-1] + edges[index]
        ends = np.minimum(begins + np.diff(edges)[index], lanes.lane_starts[1:])
        numbers: set[int] = set()
        for begin, end in zip(begins.tolist(), ends.tolist(), strict=True):
            position = np.arange(begin, max(begin, end))
            unit = np.searchsorted(lanes.unit_ends, position, side="right")
            token = position + (lanes.unit_starts + lanes.unit_lengths - lanes.unit_ends)[unit]
            token = token[token >= lanes.unit_starts[unit]]
            numbers |= set(np.searchsorted(self.store.document_ends, token, side="right").tolist())
        return sorted(numbers)

    def document_names(self, epoch: int, index: int) -> list[str]:
        """The source's names of the `documents` of a window."""
        return [self.store.document_id(number) for number in self.documents(epoch, index)]

    def _windows(self) -> Iterator[Window]:
        reader = _Reader(self, self.lanes(self.epoch))
        for index in range(self.position, len(self)):
            yield reader.window(index)


class _Reader:
    """Gathers the windows of one epoch from the array of tokens."""

    def __init__(self, loader: WindowLoader, lanes: Lanes) -> None:
        self.eos_id = loader.eos_id
        self.epoch = loader.epoch
        self.first_lane = loader.rows.start
        self.num_lanes = loader.num_lanes
        tokens = loader.store.tokens
        self.tokens = np.asarray(tokens) if isinstance(tokens, Sequence | np.ndarray) else tokens
        self.lead = lanes.lead
        self.unit_ends = lanes.unit_ends
        # Token index minus position, the same for every position of a unit.
        self.shift = lanes.unit_starts + lanes.unit_lengths - self.unit_ends
        self.unit_starts = lanes.unit_starts
        self.lane_starts = lanes.lane_starts[:-1][loader.rows]
        self.lengths = lanes.lengths[loader.rows]
        self.drop_ended = loader.seed is None
        self.longest = int((self.lengths if self.drop_ended else lanes.lengths).max(initial=0))
        self.edges = loader.edges(self.epoch, self.longest)
        whole = loader.edges(self.epoch, int(lanes.lengths.max()))  # of all processes
        self.num_targets = lanes.num_targets(whole)[: len(loader)]
        updates = np.arange(len(self.num_targets)) // loader.accumulate
        self.targets_of_update = np.bincount(updates, self.num_targets)[updates]
        self.rates = np.ones(len(updates))
        if loader.variable_bptt:
            shares = np.diff(self.edges)[: len(updates)] / loader.bptt
            self.rates = (np.bincount(updates, shares) / np.bincount(updates))[updates]
        # Lightning divides by `accumulate`, DDP by the number of processes.
        self.scale = loader.accumulate * loader.world_size

    def window(self, index: int) -> Window:
        begin, end = self.edges[index : index + 2].tolist()
        rows = int((self.lengths > begin).sum()) if self.drop_ended else len(self.lengths)
        lengths = self.lengths[:rows, None]
        column = np.arange(begin, end)[None, :]  # (1, time)
        inside = column < lengths  # (rows, time)
        position = self.lane_starts[:rows, None] + np.minimum(column, np.maximum(lengths - 1, 0))
        unit = np.searchsorted(self.unit_ends, position, side="right")
        unit = np.minimum(unit, len(self.unit_ends) - 1)  # the empty lanes at the end
        token = position + self.shift[unit]
        offset = token - self.unit_starts[unit]  # in the unit; -1 at a reset position
        resets = inside & (offset < 0)
        mask = inside & (offset >= 0)
        fresh = offset <= 0 if self.lead else token == 0
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
            float(self.rates[index]),
        )
