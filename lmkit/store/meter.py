"""The progress of a preparation: how much is done, how fast, and the time that is left."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from datetime import timedelta

Advance = Callable[[int], None]


class Meter:
    """Counts work in a `unit` such as tokens, and the bytes on disk of finished pieces."""

    def __init__(self, unit: str, num_bytes: int) -> None:
        self.unit = unit
        self.num_bytes = num_bytes
        self.amount = self.done_bytes = 0
        self._began = time.perf_counter()

    def advance(self, amount: int) -> None:
        self.amount += amount

    def finish(self, num_bytes: int) -> None:
        """Note that a piece is done."""
        self.done_bytes += num_bytes

    def __str__(self) -> str:
        seconds = time.perf_counter() - self._began
        text = f"{self.amount:,} {self.unit}, {self.amount / max(seconds, 1e-9):,.0f} {self.unit}/s"
        if 0 < self.done_bytes < self.num_bytes:
            share = self.done_bytes / self.num_bytes
            left = timedelta(seconds=round(seconds / share - seconds))
            text += f", {share:.0%} of the bytes, {left} left"
        return text


@contextlib.contextmanager
def metered(label: str, unit: str, shown: bool, num_bytes: int = 0) -> Iterator[Meter]:
    """A meter that is shown on stderr if that is a terminal."""
    meter = Meter(unit, num_bytes)
    if not (shown and sys.stderr.isatty()):
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
