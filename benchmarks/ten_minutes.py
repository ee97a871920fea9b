"""What models reach on WikiText-2 in the same ten minutes, each on one core.

    python benchmarks/ten_minutes.py path=DIR [minutes=10] [at_once=2] [rows=LSTM,GRU]

Every row is the recipe wikitext2_ten_minutes with another model: the same tokens, vocabulary, head,
optimizer and schedule. A short training says how many updates fit, and `lmkit train` does so many,
from the raw text to the end of its validation, `at_once` rows at a time. Then `lmkit evaluate`
reads valid and test, as one stream in the recipe's lanes and article by article.
"""

from __future__ import annotations

import json
import math
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from measure import SCRATCH, console, print_header, settings
from omegaconf import MISSING

RECIPE = "experiment=wikitext2_ten_minutes"
COUNTED = "5-gram"  # which takes as long as it takes
# Overrides of the recipe. An Elman net needs a lower rate than the others.
ROWS = {
    COUNTED: ("experiment=kneser_ney", "model.order=5"),
    "window of 5": ("model=window",),
    "Elman": ("model=elman", "optimizer.lr=1e-3"),
    "GRU": ("model=gru",),
    "LSTM": (),
    "AWD-LSTM": (
        *("model.weight_dropout=0.5", "model.locked_dropout=true", "model.word_dropout=0.1"),
        *("model.embedding_dropout=0.65", "model.dropout=0.2", "model.output_dropout=0.4"),
        *("regularizers=[ar,tar]", "data.variable_bptt=true"),
    ),
    "Mogrifier": ("model=mogrifier",),
    "minLSTM": ("model=min_lstm",),
    "residual LSTM of 6": ("model.num_layers=6", "model.residual=rms_norm"),
}
SPLITS = ("valid", "test")
COLUMNS = (
    *("model", "parameters", "minutes", "tokens/s", "tokens read", *SPLITS),
    *("test by document", "bits per byte"),
)
ONE_CORE = {**os.environ, "OMP_NUM_THREADS": "1"}
# Updates of the training that shows how long one takes; the first of them warm up.
TRIAL, WARM_UP = 60, 20


@dataclass
class TenMinutesSettings:
    """path: WikiText-2's directory; rows: some of them, divided by commas; null: all."""

    path: str = MISSING
    minutes: float = 10
    at_once: int = 2
    rows: str | None = None


@dataclass
class Row:
    """What one model reached: `minutes` of wall time from the start of the command to its end."""

    name: str
    minutes: float
    summary: dict[str, Any]
    results: dict[tuple[str, str], dict[str, float]]


class Training:
    """The trainings of one row, in a directory of its own, so that each encodes the raw text."""

    def __init__(self, name: str, path: Path) -> None:
        self.name = name
        self._outputs = SCRATCH / "ten_minutes" / name.replace(" ", "_")
        shutil.rmtree(self._outputs, ignore_errors=True)
        recipe = () if name == COUNTED else (RECIPE,)
        self._given = ("train", *recipe, f"data.path={path}", *ROWS[name], "name=ten_minutes")

    def run(self, run_id: str, *more: str) -> tuple[Path, float]:
        """Train; the run's directory and the seconds of the command."""
        begin = time.perf_counter()
        self._lmkit(*self._given, *more, f"run_id={run_id}", "trainer.limit_test_batches=0")
        seconds = time.perf_counter() - begin
        return self._outputs / "ten_minutes" / run_id, seconds

    def updates(self, seconds: float) -> int:
        """How many updates fit into so many seconds, with all that is done once."""
        run, whole = self.run("trial", *lasting(TRIAL), f"trainer.log_every_n_steps={WARM_UP}")
        lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
        at = {line["step"]: line["seconds"] for line in lines if "train/nll" in line}
        each = (at[TRIAL] - at[WARM_UP]) / (TRIAL - WARM_UP)
        shutil.rmtree(self._outputs)
        return int((seconds - (whole - TRIAL * each)) / each)

    def row(self, minutes: float) -> Row:
        """Train for so long, and evaluate."""
        more = () if self.name == COUNTED else lasting(self.updates(60 * minutes))
        run, seconds = self.run("whole", *more)
        summary = json.loads((run / "summary.json").read_text())
        results = {}
        for split in SPLITS:
            read = (f"split={split}", "protocol=[stream,document]", "num_lanes=10")
            found = self._lmkit("evaluate", str(run), *read)
            for each in found["results"]:
                results[split, each["protocol"]] = {**each, "num_bytes": found["num_bytes"]}
        return Row(self.name, seconds / 60, summary, results)

    def _lmkit(self, *argv: str) -> Any:
        """What a command prints as JSON; on one core."""
        more = () if argv[0] == "evaluate" else (f"outputs={self._outputs}", "threads=1")
        command = [sys.executable, "-m", "lmkit", *argv, *more, "format=json"]
        done = subprocess.run(command, env=ONE_CORE, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{shlex.join(command)} ended with {done.returncode}: {done.stderr}")
        return json.loads(done.stdout)


def lasting(updates: int) -> tuple[str, ...]:
    """A training of so many updates, with one validation, at its end."""
    every = (f"trainer.val_check_interval={updates}", "trainer.check_val_every_n_epoch=null")
    return (f"trainer.max_steps={updates}", "trainer.max_epochs=-1", *every)


def main() -> None:
    given = settings(TenMinutesSettings)
    print_header()
    names = given.rows.split(",") if given.rows else list(ROWS)
    path = Path(given.path).resolve()
    trainings = [Training(name, path) for name in names]
    print_row(COLUMNS)
    print_row(("---", *["--:"] * (len(COLUMNS) - 1)))
    with ThreadPoolExecutor(given.at_once) as pool:
        for row in pool.map(lambda each: each.row(given.minutes), trainings):
            print_row(cells(row))


def print_row(cells: Sequence[str]) -> None:
    """A row of a table in Markdown."""
    console.print(f"| {' | '.join(cells)} |", soft_wrap=True, highlight=False)


def cells(row: Row) -> tuple[str, ...]:
    """A row as text: perplexities of both splits as a stream, and of test by document.

    The words of WikiText-2 give its bytes: between two of them is one space.
    """
    summary, by_document = row.summary, row.results["test", "document"]
    bits = by_document["nll"] * by_document["num_tokens"] / math.log(2)
    return (
        row.name,
        f"{summary['num_parameters']:,}",
        f"{row.minutes:.1f}",
        f"{summary['tokens_per_second']:,.0f}",
        f"{summary['tokens']:,}",
        *(f"{row.results[split, 'stream']['perplexity']:.1f}" for split in SPLITS),
        f"{by_document['perplexity']:.1f}",
        f"{bits / by_document['num_bytes']:.3f}",
    )


if __name__ == "__main__":
    main()
