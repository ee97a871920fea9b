"""The values of training that are logged: sums over its tokens, and its clock."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lmkit.metrics import perplexity


class TrainingValues:
    """Sums over the tokens of training since they were last logged, and the seconds spent on them.

    The sums are this process's, on its device, and targets are counted over all processes. Only
    `means` waits for the device.
    """

    def __init__(self, names: Sequence[str]) -> None:
        """names: of the sums."""
        self.names = tuple(names)
        self.sums = torch.zeros(len(names), dtype=torch.float64)
        self.num_targets = 0
        self.tokens_seen = 0  # since training began
        self.seconds = 0.0  # spent on these
        self._seconds_logged = 0.0  # as they were then
        self._started = 0.0  # the clock runs since; 0 if it stands still
        self._before = (self.sums, self.num_targets)  # this update

    def begin_window(self, *, is_first: bool) -> None:
        """is_first: of its update."""
        self._started = self._started or time.perf_counter()
        if is_first:
            self._before = (self.sums, self.num_targets)

    def add(self, sums: Tensor, num_targets: int) -> None:
        """Count the sums over the targets of a window."""
        self.sums = self.sums.to(sums.device) + sums
        self.num_targets += num_targets
        self.tokens_seen += num_targets

    def end_window(self) -> None:
        now = time.perf_counter()
        self.seconds += now - self._started
        self._started = now

    def stop_clock(self) -> None:
        self._started = 0.0

    def drop_update(self) -> None:
        """Forget the sums of the windows of this update."""
        self.sums, self.num_targets = self._before

    def means(self, sums: Tensor) -> dict[str, float]:
        """What is logged of sums over the targets of all processes, with the tokens per second."""
        means = [value / self.num_targets for value in sums.tolist()]
        running = time.perf_counter() - self._started if self._started else 0.0
        seconds = self.seconds - self._seconds_logged + running
        of_nll = {"train/perplexity": perplexity(means[0])} if self.names[0] == "nll" else {}
        return {
            **{f"train/{name}": mean for name, mean in zip(self.names, means, strict=True)},
            **of_nll,
            "train/tokens_per_second": self.num_targets / max(seconds, 1e-9),
        }

    def begin_anew(self) -> None:
        """After the values have been logged."""
        self.sums = torch.zeros_like(self.sums)
        self.num_targets = 0
        self._seconds_logged = self.seconds

    def state_dict(self) -> dict[str, Any]:
        """All but the sums, which each process has of its own."""
        return {
            "tokens_seen": self.tokens_seen,
            "seconds": self.seconds,
            "seconds_logged": self._seconds_logged,
            "num_targets": self.num_targets,
        }

    def load_state_dict(self, saved: Mapping[str, Any], sums: Tensor) -> None:
        self.sums = sums
        self.tokens_seen = saved["tokens_seen"]
        self.seconds = saved["seconds"]
        self._seconds_logged = saved["seconds_logged"]
        self.num_targets = saved["num_targets"]
