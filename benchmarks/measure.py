"""What every benchmark shares: settings, rates by turns, memory in a process of its own."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import platform
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from omegaconf import OmegaConf
from rich.console import Console
from rich.table import Table

from lmkit.kernels.matmul import fast_matmul
from lmkit.system.allocator import M_MMAP_MAX, M_TRIM_THRESHOLD, keep_freed_memory

T = TypeVar("T")

SCRATCH = Path(tempfile.gettempdir()) / "lmkit-benchmarks"

M_MMAP_THRESHOLD = -3  # malloc.h of the GNU C library

# Wide enough for the tables when the output is piped into a file.
console = Console(width=None if sys.stdout.isatty() else 100)


def settings(of: type[T]) -> T:
    """The `key=value` arguments of the command line as the dataclass `of`."""
    return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(of), OmegaConf.from_cli()))


def print_header() -> None:
    """The command and what it ran on."""
    gpu = f"{torch.cuda.get_device_name()}, " if torch.cuda.is_available() else ""
    console.print(f"[bold]python {shlex.join(sys.argv)}[/bold]", soft_wrap=True)
    console.print(
        f"{gpu}{processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads; "
        f"torch {torch.__version__}, Python {platform.python_version()}; "
        f"load {os.getloadavg()[0]:.1f}",
        soft_wrap=True,
    )


def processor() -> str:
    """The name of this machine's processor."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


class Rates:
    """Tokens per second of each side, round by round; the first round warms up.

    A ratio is the median of the ratios to `baseline` within one round, when both sides met
    the same noise.
    """

    def __init__(self, baseline: str) -> None:
        self.baseline = baseline
        self.rounds: dict[str, list[float]] = {baseline: []}

    def add(self, side: str, num_tokens: int, seconds: float) -> None:
        self.rounds.setdefault(side, []).append(num_tokens / seconds)

    def turn_about(self, sides: dict[str, Callable[[], int]], rounds: int) -> None:
        """Call every side once a round, and once before; a side returns its number of tokens."""
        for _ in range(rounds + 1):
            for side, run in sides.items():
                begin = now()
                num_tokens = run()
                self.add(side, num_tokens, now() - begin)

    def median_ratio(self, side: str) -> float:
        """To the baseline."""
        pairs = zip(self.rounds[side][1:], self.rounds[self.baseline][1:], strict=True)
        return statistics.median(rate / other for rate, other in pairs)

    def shares(self, flops: int, peak: float) -> dict[str, str]:
        """What part of `peak` (FLOP/s) each side's median is, at `flops` a token."""
        return {
            side: f"{statistics.median(rates[1:]) * flops / peak:.0%}"
            for side, rates in self.rounds.items()
        }

    def table(self, title: str, more: dict[str, dict[str, str]] | None = None) -> Table:
        """Medians of the rounds; `more` gives further columns, each by side."""
        more = more or {}
        rounds = len(self.rounds[self.baseline]) - 1
        table = Table(title=f"{title} (median of {rounds} rounds)", title_justify="left")
        table.add_column("")
        for column in ("tokens/s", "lowest to highest", "ratio", *more):
            table.add_column(column, justify="right")
        for side, (_, *rates) in self.rounds.items():
            table.add_row(
                side,
                f"{statistics.median(rates):,.0f}",
                f"{min(rates):,.0f} to {max(rates):,.0f}",
                f"{self.median_ratio(side):.2f}",
                *(column.get(side, "") for column in more.values()),
            )
        return table


def now() -> float:
    """The clock in seconds, when the GPU, if there is one, has done what it was given."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


def gemm_rate(dtype: torch.dtype, device: str = "cpu", rounds: int = 9) -> float:
    """FLOP/s of one large matrix product, the median of some."""
    size = 2048 if device == "cpu" else 8192
    one, other = torch.randn(2, size, size, device=device).to(dtype)
    seconds = []
    with fast_matmul():
        for _ in range(rounds + 1):
            begin = now()
            torch.mm(one, other.T)
            seconds.append(now() - begin)
    return 2 * size**3 / statistics.median(seconds[1:])


@contextmanager
def default_allocator() -> Iterator[None]:
    """The C library's own ways with freed memory, as they settle in a process that lmkit has not
    changed, and lmkit's outside of the block."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", lambda key, value: None)
    mallopt(M_MMAP_MAX, 65536)
    mallopt(M_MMAP_THRESHOLD, 2**25)  # the most that it grows to by itself
    mallopt(M_TRIM_THRESHOLD, 2**26)
    try:
        yield
    finally:
        keep_freed_memory()


def in_child(function: Callable[..., T], *args: Any) -> T:
    """`function(*args)` in a fresh process, so that its memory is its own."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context) as pool:
        return pool.submit(function, *args).result()


class PeakMemory:
    """Most resident bytes of this process while the block ran, above those at its start; of tensors
    on the GPU where there is one in use.

    Linux's VmHWM; getrusage's ru_maxrss starts with the parent's, across fork and exec.
    """

    num_bytes = 0

    def __enter__(self) -> PeakMemory:
        self._start = _status("VmRSS")
        return self

    def __exit__(self, *_: object) -> None:
        on_gpu = torch.cuda.max_memory_allocated() if torch.cuda.is_initialized() else 0
        self.num_bytes = on_gpu or _status("VmHWM") - self._start

    def __str__(self) -> str:
        return f"{self.num_bytes / 2**20:,.0f} MiB"


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith(f"{key}:")]
    return int(line.split()[1]) * 1024
