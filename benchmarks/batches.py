"""Batches of documents: lmkit's lanes against padding, bucketing by length and packing.

    python benchmarks/batches.py path=DIR [shape=200_tied] [precision=bf16-mixed] [rounds=5]
        [windows=20]

All batch the documents of WikiText-2 train by the preset's batch size, in windows of its bptt.
Padded: documents in random order, padded to the longest of the batch. Bucketed: the same, sorted
by length. Packed: the same as bucketed, with `pack_padded_sequence`, and embedding and softmax of
the packed positions alone. Lanes: lmkit's protocol `document`. A round is `windows` windows in a
row, made beforehand; the rounds lie evenly over an epoch.

Tokens are the positions computed times the share of real targets among those of a whole epoch:
padding costs as much as any position. The plain loop runs in lmkit's precision. The second table
tells batching from code: all of it is lmkit's fit.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from baseline import Baseline, Batch, LSTMState, WordModel, read
from measure import Rates, console, print_header, settings
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_sequence
from turns import LMKIT, PLAIN, Settings, make_trainer, start

from lmkit.system.allocator import keep_freed_memory
from lmkit.training.components import make_task
from lmkit.windows import DataModule, Window

PADDED, BUCKETED, PACKED, LANES = "padded", "bucketed", "packed", "lanes"

Train = Callable[[int], int]  # the number of a round -> tokens


@dataclass
class BatchesSettings(Settings):
    precision: str = "bf16-mixed"
    rounds: int = 5
    windows: int = 20


class Batching:
    """An epoch's efficiency, and the windows of each round, one more of which warms up."""

    def __init__(self, epoch: list[Window], given: BatchesSettings) -> None:
        num_positions = sum(window.targets.numel() for window in epoch)
        self.efficiency = sum(window.num_targets for window in epoch) / num_positions
        places = (np.arange(given.rounds + 1) + 0.5) / (given.rounds + 1)
        begins = (places * (len(epoch) - given.windows)).astype(int)
        rounds = [epoch[begin : begin + given.windows] for begin in begins]
        self.rounds = [[first._replace(index=0), *others] for first, *others in rounds]

    def num_tokens(self, index: int) -> int:
        num_positions = sum(window.targets.numel() for window in self.rounds[index])
        return round(self.efficiency * num_positions)


def padded(data: DataModule, by_length: bool) -> list[Window]:
    """Batches of documents, each from the zero state and with its longest document first."""
    store = data.prepared.stores["train"]
    documents = np.split(store.tokens.astype(np.int64), store.document_ends[:-1].astype(np.int64))
    np.random.default_rng(data.seed).shuffle(documents)
    if by_length:
        documents.sort(key=len)
    windows = []
    for begin in range(0, len(documents), data.batch_size):
        batch = sorted(documents[begin : begin + data.batch_size], key=len, reverse=True)
        targets = pad_sequence([torch.from_numpy(d) for d in batch], True, padding_value=-1)
        tokens = F.pad(targets[:, :-1], (1, 0), value=data.tokenizer.eos_id).clamp_min(0)
        parts = zip(tokens.split(data.bptt, dim=1), targets.split(data.bptt, dim=1), strict=True)
        for index, (inputs, wanted) in enumerate(parts):
            mask = wanted >= 0
            resets, weight = torch.zeros_like(mask), mask / mask.sum()
            window = (inputs, wanted.clamp_min(0), resets, mask, weight, index, int(mask.sum()))
            windows.append(Window(*window, epoch=0, first_lane=0, num_lanes=len(batch)))
    return windows


class PackedModel(WordModel):
    """Reads packed windows; rows that have ended are the last ones."""

    def forward(self, tokens: PackedSequence, state: LSTMState | None) -> tuple[Tensor, LSTMState]:
        rows = tokens.batch_sizes[0]
        hidden = self.dropout(self.encoder(tokens.data))
        states = []
        for index, lstm in enumerate(self.lstms):
            old = tuple(x[:, :rows].contiguous() for x in state[index]) if state else None
            packed, new = lstm(PackedSequence(hidden, tokens.batch_sizes), old)
            hidden = self.dropout(packed.data)
            states.append(new)
        return F.log_softmax(self.decoder(hidden), dim=-1), states


def pack(window: Window) -> Batch:
    lengths = window.mask.sum(dim=1)
    rows = int((lengths > 0).sum())
    tokens, targets = (
        pack_padded_sequence(ids[:rows], lengths[:rows], batch_first=True)
        for ids in (window.tokens, window.targets)
    )
    return Batch(tokens, targets.data, window.num_targets)


def plain(baseline: Baseline, batching: Batching, packs: bool = False) -> Train:
    rounds = [
        [pack(window) for window in windows] if packs else read(windows)
        for windows in batching.rounds
    ]

    def train(index: int) -> int:
        windows = batching.rounds[index]
        for window, batch in zip(windows, rounds[index], strict=True):
            if window.index == 0:
                baseline.state = None
            baseline.train([batch])
        if packs:
            return sum(window.num_targets for window in windows)
        return batching.num_tokens(index)

    return train


class TurnAbout:
    """The windows of a fit that trains on batchings by turns, with the plain loops in between."""

    def __init__(self, batchings: dict[str, Batching], loops: dict[str, Train]) -> None:
        self.batchings = batchings
        self.loops = loops
        self.rates, self.fit_rates = Rates(f"{PLAIN}, {PADDED}"), Rates(f"{LMKIT}, {PADDED}")

    def __len__(self) -> int:
        """One too many: Lightning reads ahead without it, and leaves off after the last one."""
        return 1 + sum(len(part) for side in self.batchings.values() for part in side.rounds)

    def __iter__(self) -> Iterator[Window]:
        for index in range(len(self.batchings[LANES].rounds)):
            for name, train in self.loops.items():
                begin = time.perf_counter()
                num_tokens = train(index)
                self.rates.add(f"{PLAIN}, {name}", num_tokens, time.perf_counter() - begin)
            for name, batching in self.batchings.items():
                begin = time.perf_counter()
                yield from batching.rounds[index]
                seconds = time.perf_counter() - begin
                for rates in (self.rates, self.fit_rates):
                    rates.add(f"{LMKIT}, {name}", batching.num_tokens(index), seconds)


def main() -> None:
    given = settings(BatchesSettings)
    print_header()
    config, data = start(given)
    task = make_task(config, data)
    documents = data.loader("train", train=True, protocol="document")
    batchings = {
        PADDED: Batching(padded(data, by_length=False), given),
        BUCKETED: Batching(padded(data, by_length=True), given),
        LANES: Batching(list(documents), given),
    }

    def baseline(kind: type[WordModel]) -> Baseline:
        size, bf16 = data.tokenizer.vocabulary_size, given.precision == "bf16-mixed"
        loop = Baseline(size, config, bf16)
        loop.model = kind(size, config["model"])
        loop.model.take_weights(task.model, task.head)
        return loop

    loops = {
        PADDED: plain(baseline(WordModel), batchings[PADDED]),
        BUCKETED: plain(baseline(WordModel), batchings[BUCKETED]),
        PACKED: plain(baseline(PackedModel), batchings[BUCKETED], packs=True),
    }
    turns = TurnAbout(batchings, loops)
    keep_freed_memory()
    trainer = make_trainer(config, max_epochs=1, limit_val_batches=0)
    trainer.fit(task, train_dataloaders=turns)
    targets = {
        f"{code}, {name}": f"{batching.efficiency:.1%}"
        for code in (PLAIN, LMKIT)
        for name, batching in batchings.items()
    }
    columns = {"real targets": {**targets, f"{PLAIN}, {PACKED}": "100.0%"}}
    console.print(turns.rates.table(f"training {given.shape}, {given.precision}", columns))
    console.print(turns.fit_rates.table("lmkit's fit alone", columns))


if __name__ == "__main__":
    main()
