"""The progress bar of a computation over tokens."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn


@contextmanager
def progress(what: str, num_tokens: int) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal, with tokens per second and the time left; yields a function that takes
    the number of tokens so far."""
    console = Console(stderr=True)
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        TextColumn("{task.percentage:.0f}% {task.fields[rate]}"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    began = time.perf_counter()
    with bar:
        task = bar.add_task(what, total=num_tokens, rate="")

        def advance(completed: int) -> None:
            rate = completed / (time.perf_counter() - began)
            bar.update(task, completed=completed, rate=f"{rate:,.0f} tokens/s")

        yield advance
