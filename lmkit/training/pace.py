"""The callback that watches the speed of training and may change the number of threads."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from lmkit.run.jsonl import JsonLines
from lmkit.system.threads import Threads
from lmkit.training.loggers.jsonl import position

log = logging.getLogger(__name__)


NAME = "threads.jsonl"  # in the run directory, if the number of threads is chosen and not set


class Pace(Callback):
    """Warns when training has become slower, and changes the number of threads where `threads`
    allows it.

    threads.jsonl in the run directory records each chosen number with its step and the measured
    speeds; nothing is recorded if `is_set`, the user has set the number.
    """

    def __init__(self, threads: Threads, path: Path, *, is_set: bool) -> None:
        self.threads = threads
        self.is_set = is_set
        self._choices = JsonLines(path / NAME)
        self._began = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._began = time.perf_counter()
        if self._choices.path.exists():  # a kill may have cut its last row short
            self._choices.resume(self._choices.path.stat().st_size)
        if not self.is_set:
            self._write(trainer, "chosen for the start")

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
        if not began or pl_module.device.type != "cpu":
            return
        if message := self.threads.worked(batch.num_targets, now - began):
            log.warning("%s", message)
            if not self.is_set:
                self._write(trainer, message)

    def _write(self, trainer: Trainer, message: str) -> None:
        speeds = {str(number): round(rate) for number, rate in self.threads.rates.items()}
        row = {"step": position(trainer)["step"], "threads": self.threads.number}
        self._choices.append({**row, "tokens_per_second": speeds, "message": message})
