"""Speed on cores that other programs use too: lmkit with one thread, with all, with the number that
a trial chooses, and the plain loop, beside 0, 1, 2 .. busy programs.

    python benchmarks/neighbours.py path=DIR [shape=200] [precision=bf16-mixed] [seconds=4]
        [rounds=3] [most=3] [command=train]

A neighbour is a loop in Python in a process of its own; from the third on each has its own session,
as another user's would. Every figure is of a fresh process, so that OpenMP starts as it does for a
user; all take turns, round after round, and the median is shown with the lowest and the highest.
command=evaluate measures `lmkit evaluate`'s way through the valid split instead of training.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

import lmkit  # noqa: F401 - before torch, as in a command: it sets how OpenMP waits

# isort: split
import torch
from baseline import Baseline, read
from measure import console, in_child, print_header, settings
from rich.table import Table
from turns import Settings, composed

from lmkit.assembly import build_model, make_data
from lmkit.inference import TrainedModel
from lmkit.training.estimate import estimate

WAITING = 0.3  # seconds for a neighbour to start, or to be gone
PLAIN = "plain loop"
SPINS = "300000"  # of GNU OpenMP where nobody has set it


@dataclass
class NeighbourSettings(Settings):
    shape: str = "200"
    precision: str = "bf16-mixed"
    seconds: float = 4.0
    rounds: int = 3
    most: int = 3
    command: str = "train"


@contextmanager
def neighbours(number: int) -> Iterator[None]:
    """So many other programs that want a core each."""
    busy = [
        subprocess.Popen([sys.executable, "-c", "while True: pass"], start_new_session=index > 1)
        for index in range(number)
    ]
    time.sleep(WAITING)
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()
        time.sleep(WAITING)


def train(given: NeighbourSettings, number: int | None) -> tuple[float, int]:
    """Tokens per second of lmkit's training, and with how many threads; None: as chosen."""
    measured = estimate({**composed(given), "threads": number}, seconds=given.seconds)
    return measured.tokens_per_second, measured.threads.number


def train_plainly(given: NeighbourSettings, number: int | None) -> tuple[float, int]:
    """The same of the plain loop, in fp32, with PyTorch's own number of threads and OpenMP's own
    way of waiting."""
    config = composed(given)
    data = make_data(config)
    side = Baseline(data.tokenizer.vocabulary_size, config)
    batches = iter(read(islice(data.loader("train", train=True), 200)))
    side.train(list(islice(batches, 2)))
    tokens, began = 0, time.perf_counter()
    for batch in batches:
        side.train([batch])
        tokens += batch.num_targets
        if time.perf_counter() - began > given.seconds:
            break
    return tokens / (time.perf_counter() - began), torch.get_num_threads()


def evaluate(given: NeighbourSettings, number: int | None) -> tuple[float, int]:
    """Tokens per second through the valid split in 64 lanes, of a model with fresh weights."""
    config = composed(given)
    data = make_data(config)
    parts = build_model(config, data.tokenizer.vocabulary_size)
    model = TrainedModel(*parts, data.tokenizer, precision=given.precision, threads=number)
    tokens, began = 0, time.perf_counter()
    while time.perf_counter() - began < given.seconds:
        loader = model.loader(data.prepared.stores["valid"], "stream", 64)
        for _, num_tokens in model.nll_sums(loader):  # noqa: B007 - the last one counts
            if time.perf_counter() - began > given.seconds:
                break
        tokens += num_tokens
    return tokens / (time.perf_counter() - began), torch.get_num_threads()


def main() -> None:
    given = settings(NeighbourSettings)
    lmkits = os.environ["GOMP_SPINCOUNT"]
    print_header()
    most = torch.get_num_threads()
    work: Any = train if given.command == "train" else evaluate
    sides = {f"threads={most}": (work, most), "threads=1": (work, 1), "chosen": (work, None)}
    if given.command == "train":
        sides[PLAIN] = (train_plainly, None)
    rates: dict[tuple[int, str], list[float]] = {}
    chosen: dict[int, list[int]] = {}
    for _ in range(given.rounds):
        for busy in range(given.most + 1):
            with neighbours(busy):
                for name, (measure, number) in sides.items():
                    os.environ["GOMP_SPINCOUNT"] = SPINS if name == PLAIN else lmkits
                    rate, used = in_child(measure, given, number)
                    rates.setdefault((busy, name), []).append(rate)
                    if name == "chosen":
                        chosen.setdefault(busy, []).append(used)
    title = f"tokens/s, {given.command}, {given.shape}, {given.precision}"
    table = Table("busy neighbours", title=title, title_justify="left")
    for name in sides:
        table.add_column(name, justify="right")
    table.add_column("threads chosen", justify="right")
    for busy in range(given.most + 1):
        cells = [
            f"{statistics.median(found):,.0f} ({min(found):,.0f} to {max(found):,.0f})"
            for found in (rates[busy, name] for name in sides)
        ]
        table.add_row(str(busy), *cells, ", ".join(map(str, chosen[busy])))
    console.print(table)


if __name__ == "__main__":
    main()
