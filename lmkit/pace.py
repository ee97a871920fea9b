"""While a run trains: is it still as fast as it was, and would other threads be faster?"""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from lmkit.logs import JsonLines, position
from lmkit.threads import Threads

log = logging.getLogger(__name__)


class Pace(Callback):
    """Says when training has become slower, and changes the number of threads where `threads`
    may; `threads.jsonl` in the run directory has each change with its step."""

    def __init__(self, threads: Threads, path: Path) -> None:
        self.threads = threads
        self._changes = JsonLines(path / "threads.jsonl")
        self._began = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._began = time.perf_counter()
        if self._changes.path.exists():
            self._changes.length = self._changes.path.stat().st_size

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._began = 0.0  # the clock stands still

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        now = time.perf_counter()
        began, self._began = self._began, now
        if not began:
            return
        if message := self.threads.worked(batch.num_targets, now - began):
            log.warning("%s", message)
            speeds = {str(number): round(rate) for number, rate in self.threads.rates.items()}
            row = {"step": position(trainer)["step"], "threads": self.threads.number}
            self._changes.append({**row, "tokens_per_second": speeds, "message": message})
