"""The progress of a computation over tokens."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console  # imported where it is used: workers start without it

LINE_SECONDS = 10.0  # between two lines, where there is no terminal


@contextmanager
def progress(what: str, num_tokens: int) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal, elsewhere a plain line every ten seconds, with tokens per second and the
    time left; yields a function that takes the number of tokens so far."""
    from rich.console import Console

    console = Console(stderr=True)
    show = _bar if console.is_terminal else _lines
    began = time.perf_counter()
    with show(console, what, num_tokens) as update:
        yield lambda completed: update(completed, completed / (time.perf_counter() - began))


@contextmanager
def _bar(console: Console, what: str, num_tokens: int) -> Iterator[Callable[[int, float], None]]:
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    with Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        TextColumn("{task.percentage:.0f}% {task.fields[rate]}"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    ) as bar:
        task = bar.add_task(what, total=num_tokens, rate="")

        def update(completed: int, rate: float) -> None:
            bar.update(task, completed=completed, rate=f"{rate:,.0f} tokens/s")

        yield update


@contextmanager
def _lines(console: Console, what: str, num_tokens: int) -> Iterator[Callable[[int, float], None]]:
    shown = time.monotonic()

    def update(completed: int, rate: float) -> None:
        nonlocal shown
        if time.monotonic() - shown < LINE_SECONDS or not rate:
            return
        shown = time.monotonic()
        left = time_left((num_tokens - completed) / rate)
        line = f"{what}  {completed / num_tokens:.0%}  {rate:,.0f} tokens/s  {left}"
        console.print(line, highlight=False, markup=False, soft_wrap=True)

    yield update


def time_left(seconds: float) -> str:
    """As `0:12:30 left`."""
    return f"{timedelta(seconds=round(seconds))} left"
