"""The progress of a preparation: how much is done, how fast, and the time that is left."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

from lmkit.system.progress import LINE_SECONDS, time_left

Advance = Callable[[int], None]


class Meter:
    """Counts work in a `unit` such as tokens, and the bytes on disk of finished pieces; with a
    `label`, prints a line every ten seconds."""

    def __init__(self, unit: str, num_bytes: int, label: str = "") -> None:
        self.unit = unit
        self.num_bytes = num_bytes
        self.label = label
        self.amount = self.done_bytes = 0
        self._began = time.perf_counter()
        self._shown = self._began

    def advance(self, amount: int) -> None:
        self.amount += amount
        if self.label and time.perf_counter() - self._shown >= LINE_SECONDS:
            self._shown = time.perf_counter()
            print(f"{self.label}: {self}", file=sys.stderr, flush=True)

    def finish(self, num_bytes: int) -> None:
        """Note that a piece is done."""
        self.done_bytes += num_bytes

    def __str__(self) -> str:
        seconds = time.perf_counter() - self._began
        text = f"{self.amount:,} {self.unit}, {self.amount / max(seconds, 1e-9):,.0f} {self.unit}/s"
        if 0 < self.done_bytes < self.num_bytes:
            share = self.done_bytes / self.num_bytes
            text += f", {share:.0%} of the bytes, {time_left(seconds / share - seconds)}"
        return text


@contextlib.contextmanager
def metered(label: str, unit: str, shown: bool, num_bytes: int = 0) -> Iterator[Meter]:
    """A meter that is shown on stderr: drawn on a terminal, elsewhere a line every ten seconds."""
    terminal = sys.stderr.isatty()
    meter = Meter(unit, num_bytes, label if shown and not terminal else "")
    if not (shown and terminal):
        yield meter
        return
    from rich.console import Console
    from rich.progress import Progress, ProgressColumn, SpinnerColumn, Task
    from rich.text import Text

    class Shown(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(f"{label}: {meter}")

    with Progress(SpinnerColumn(), Shown(), console=Console(stderr=True)) as bar:
        bar.add_task(label, total=None)
        yield meter
