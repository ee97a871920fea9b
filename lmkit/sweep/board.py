"""Shows a sweep while it runs."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from lmkit.sweep.report import Shown, trial_record, typed, value_name, value_text, values_text
from lmkit.sweep.study import Study, Trial
from lmkit.sweep.trial import TrialProcess
from lmkit.system.progress import LINE_SECONDS, time_left

Running = Sequence[tuple[Trial, TrialProcess]]


class Board:
    """Running trials as a table on a terminal, elsewhere as a line every ten seconds; and
    everywhere a line for each trial that ends."""

    def __init__(
        self, study: Study, total: int, metric: str, shown: Shown, limits: Mapping[str, Any]
    ) -> None:
        """`limits` has max_steps and max_epochs of the trainer, unless trials vary them."""
        self.study = study
        self.total = total
        self.metric = metric
        self.shown = shown
        self.limits = limits
        self.console = Console(stderr=True)
        self._live = Live(console=self.console, auto_refresh=False, transient=True)
        self._began = self._printed = time.monotonic()
        self._made = 0.0  # trials that have ended since, as far as they were trained since
        self._before: dict[int, float] = {}  # by trial, the share that had been trained before
        if self.console.is_terminal:
            self._live.start()

    def close(self) -> None:
        """Stop drawing on the terminal."""
        self._live.stop()

    def ended(self, number: int) -> None:
        """Print the outcome of a trial."""
        self._made += 1 - self._before.pop(number, 0.0)
        trial = trial_record(self.study.trials()[number], self.shown)
        result = trial["why"]
        if trial["outcome"] == "finished":
            result = f"{value_name(self.metric)} {value_text(trial['value'], self.metric)}"
        self._print(
            f"{self.study.num_ended()}/{self.total}",
            f"trial {number} {trial['outcome']}",
            values_text(trial["values"]),
            result,
        )

    def show(self, running: Running) -> None:
        """Draw the table anew, or print a line if there was none for ten seconds."""
        shares = {trial.number: self._share(trial, process) for trial, process in running}
        self._before = shares | self._before
        terminal = self.console.is_terminal
        if not terminal and time.monotonic() - self._printed < LINE_SECONDS:
            return
        ended = self.study.num_ended()
        left = self._left(ended, shares)
        if terminal:
            title = ", ".join(filter(None, (f"{ended} of {self.total} trials", left)))
            self._live.update(self._table(title, running), refresh=True)
        else:
            each = (
                "  ".join(filter(None, (f"trial {trial.number}", *self._reached(process))))
                for trial, process in running
            )
            self._print(f"{ended}/{self.total}", *each, left)

    def _print(self, *words: str) -> None:
        self._printed = time.monotonic()
        line = "  ".join(filter(None, words))
        self.console.print(line, highlight=False, soft_wrap=True, markup=False)

    def _table(self, title: str, running: Running) -> Table:
        table = Table("trial", "values", "step", "epoch", "last", "best", "tokens/s", box=None)
        table.title = title
        table.title_justify = "left"
        for trial, process in running:
            last = process.values[-1] if process.values else math.nan
            row = process.row
            cells = (value_text(v, self.metric) for v in (last, _best(process)))
            reached = (str(row.get("step", "")), str(row.get("epoch", "")))
            values = values_text(typed(trial.params, self.shown))
            table.add_row(str(trial.number), values, *reached, *cells, _rate(process))
        return table

    def _reached(self, process: TrialProcess) -> Sequence[str]:
        """Step, best value and speed of a trial, as far as they are known."""
        row, rate = process.row, _rate(process)
        value = value_text(_best(process), self.metric)
        return (
            f"step {row['step']}" if "step" in row else "",
            f"{value_name(self.metric)} {value}" if value else "",
            f"{rate} tokens/s" if rate else "",
        )

    def _share(self, trial: Trial, process: TrialProcess) -> float:
        """How much of a trial is done, between 0 and 1, by its steps or whole epochs."""
        values = typed(trial.params, self.shown)
        shares = [0.0]
        for logged, key in (("step", "max_steps"), ("epoch", "max_epochs")):
            limit = values.get(f"trainer.{key}", self.limits.get(key))
            if isinstance(limit, int) and limit > 0:
                shares.append(process.row.get(logged, 0) / limit)
        return min(max(shares), 1.0)

    def _left(self, ended: int, shares: Mapping[int, float]) -> str:
        """The time left, if the trials to come take as long as those so far."""
        made = self._made + sum(shares.values()) - sum(self._before[n] for n in shares)
        if made <= 0:
            return ""
        missing = self.total - ended - sum(shares.values())
        return time_left((time.monotonic() - self._began) / made * missing)


def _best(process: TrialProcess) -> float:
    return math.nan if process.best is None else process.best


def _rate(process: TrialProcess) -> str:
    rate = process.row.get("train/tokens_per_second")
    return f"{rate:,.0f}" if rate else ""
