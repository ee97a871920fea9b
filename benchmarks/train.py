"""Training speed, memory and loss curve: lmkit's fit against the plain loop.

    python benchmarks/train.py path=DIR [shape=200|200_tied|650_tied|1500_tied|awd]
        [precision=32-true] [accelerator=cuda] [steps=100] [rounds=10] [dropout=0]
        [json=FILE]
    python benchmarks/train.py path=DIR epoch=true [rounds=60]

All start from the same weights, read the same windows and take turns in one process, `steps /
rounds` steps each (and a first turn to warm up). The peak memory of each, above that before its
model is made, is of a short run in a process of its own. The share of the GEMM peak is that of the
matrix products a token needs, at the rate of one large product in lmkit's precision. With
dropout=0 the loss curves must agree step by step until rounding errors have grown.

With epoch=true they train for a whole epoch and are then validated: on two idle cores about 20
minutes for 2x200, an hour for 2x650.
"""

from __future__ import annotations

import json
import statistics
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from baseline import Baseline, read
from measure import PeakMemory, console, gemm_rate, in_child, print_header, settings
from rich.table import Table
from turns import LMKIT, PLAIN, PLAIN_BF16, Settings, TurnAbout, composed, make_trainer, start

from lmkit.assembly import make_data
from lmkit.metrics import perplexity
from lmkit.system.allocator import keep_freed_memory
from lmkit.training.components import make_task
from lmkit.training.fit import computing

MEMORY_STEPS = 6


@dataclass
class TrainSettings(Settings):
    steps: int = 100
    rounds: int = 10
    epoch: bool = False
    json: str | None = None


def steps(number: int) -> dict[str, Any]:
    """The settings of a trainer that stops there and validates nothing."""
    return {"max_steps": number, "limit_val_batches": 0}


def take_turns(given: TrainSettings) -> tuple[TurnAbout, Table | None]:
    """Train both turn about; after a whole epoch, also validate both."""
    config, data = start(given)
    loader = data.loader("train", train=True)
    block = max((len(loader) if given.epoch else given.steps) // given.rounds, 1)
    batches = read(loader if given.epoch else islice(loader, given.steps + block))
    size = data.tokenizer.vocabulary_size
    sides = {PLAIN: Baseline(size, config), PLAIN_BF16: Baseline(size, config, bf16=True)}
    turns = TurnAbout(sides, batches, block)
    length = {"max_epochs": 1} if given.epoch else steps(len(batches))
    trainer = make_trainer(config, turns, **length)
    with computing(config):
        trainer.fit(make_task(config, data), datamodule=data)
    if not given.epoch:
        return turns, None
    nll = {
        **{name: side.evaluate(read(data.loader("valid"))) for name, side in sides.items()},
        LMKIT: float(trainer.callback_metrics["val/nll"]),
    }
    table = Table("", "nll", "perplexity", title="validation after one epoch", title_justify="left")
    for side, value in nll.items():
        table.add_row(side, f"{value:.4f}", f"{perplexity(value):.2f}")
    return turns, table


def memory_of_plain(given: Settings, bf16: bool) -> PeakMemory:
    config = composed(given)
    data = make_data(config)
    batches = read(islice(data.loader("train", train=True), MEMORY_STEPS))
    with PeakMemory() as peak:
        Baseline(data.tokenizer.vocabulary_size, config, bf16).train(batches)
    return peak


def memory_of_lmkit(given: Settings) -> PeakMemory:
    config = composed(given)
    data = make_data(config)
    trainer = make_trainer(config, **steps(MEMORY_STEPS))
    data.prepare()  # before the memory counts
    keep_freed_memory()
    with PeakMemory() as peak, computing(config):
        trainer.fit(make_task(config, data), datamodule=data)
    return peak


def curves(plain: list[float], lmkit: list[float]) -> Table:
    """Losses at steps 1, 2, 5, 10, .. and the means of the last tenth."""
    table = Table(title="training loss", title_justify="left")
    for column in ("step", PLAIN, LMKIT, "difference"):
        table.add_column(column, justify="right")

    def row(name: str, one: float, other: float) -> None:
        table.add_row(name, f"{one:.6f}", f"{other:.6f}", f"{other - one:+.1e}")

    steps = [figure * 10**power for power in range(6) for figure in (1, 2, 5)]
    for step in (step for step in steps if step <= len(plain)):
        row(f"{step:,}", plain[step - 1], lmkit[step - 1])
    last = max(len(plain) // 10, 1)
    row(f"mean of last {last:,}", sum(plain[-last:]) / last, sum(lmkit[-last:]) / last)
    return table


def main() -> None:
    given = settings(TrainSettings)
    print_header()
    cases = {
        PLAIN: (memory_of_plain, given, False),
        PLAIN_BF16: (memory_of_plain, given, True),
        LMKIT: (memory_of_lmkit, given),
    }
    with ThreadPoolExecutor() as pool:  # at once: their memory does not depend on each other
        peaks = pool.map(lambda case: in_child(*case), cases.values())
        memory = dict(zip(cases, peaks, strict=True))
    turns, validation = take_turns(given)
    dtype = torch.bfloat16 if given.precision == "bf16-mixed" else torch.float32
    peaks = {each: gemm_rate(each, given.accelerator) for each in {dtype, torch.bfloat16}}
    columns = {
        "of GEMM peak": turns.rates.shares(3 * turns.flops, peaks[dtype]),
        "peak memory": {side: str(peak) for side, peak in memory.items()},
    }
    console.print(turns.rates.table(f"training {given.shape}, {given.precision}", columns))
    console.print(curves(turns.sides[PLAIN].losses, torch.stack(turns.losses).tolist()))
    if validation:
        console.print(validation)
    if given.json:
        Path(given.json).write_text(json.dumps(figures(given, turns, peaks, memory), indent=1))


def figures(
    given: TrainSettings,
    turns: TurnAbout,
    peaks: dict[torch.dtype, float],
    memory: dict[str, PeakMemory],
) -> dict[str, Any]:
    """All of the table, of each side, as plain values; rates are tokens per second by round."""
    per_token = 3 * turns.flops
    return {
        "shape": given.shape,
        "precision": given.precision,
        "flops_per_token": per_token,
        "gemm_flops_per_second": {str(dtype): peak for dtype, peak in peaks.items()},
        "sides": {
            side: {
                "tokens_per_second": statistics.median(rates[1:]),
                "rounds": rates[1:],
                "ratio": turns.rates.median_ratio(side),
                "of_bf16_gemm": statistics.median(rates[1:]) * per_token / peaks[torch.bfloat16],
                "peak_bytes": memory[side].num_bytes,
            }
            for side, rates in turns.rates.rounds.items()
        },
    }


if __name__ == "__main__":
    main()
