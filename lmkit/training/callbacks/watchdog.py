"""A process of several that no longer moves is ended, with its name and stack."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from lmkit.ranges import Positive
from lmkit.training.failure import Failure

Place = tuple[int, int, int]  # updates done, phase of the next, window of that phase
PHASES = ("forward", "backward", "update", "validation", "end of validation", "checkpoint")


class Watchdog(Callback):
    """Ends this process when it has not moved for long and is behind all others, which wait for
    it; only where there are several, and only in a fit.

    A process that waits would do so for half an hour, and then name the wrong one.

    seconds: without moving, after which it is ended.
    """

    def __init__(self, *, seconds: Positive = 600.0) -> None:
        self.seconds = seconds
        self._place: Place = (0, 0, 0)
        self._moved = 0.0
        self._ended = threading.Event()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.world_size > 1:
            self._ended.clear()
            self._move(trainer, 0, 0)
            directory = Path(trainer.default_root_dir) / "logs"
            directory.mkdir(exist_ok=True)
            arguments = (directory, trainer.global_rank, trainer.world_size)
            threading.Thread(target=self._watch, args=arguments, daemon=True).start()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._ended.set()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self._ended.set()

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._move(trainer, 0, batch_idx)

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Any) -> None:
        self._move(trainer, 1, self._place[2])

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._move(trainer, 2, self._place[2])

    def on_validation_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._move(trainer, 3, batch_idx)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._move(trainer, 4, 0)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._move(trainer, 5, 0)

    def _move(self, trainer: Trainer, phase: int, window: int) -> None:
        self._place = (trainer.global_step, phase, window)
        self._moved = time.monotonic()

    def _watch(self, directory: Path, rank: int, world_size: int) -> None:
        """In a thread: tell the others where this process is, and look whether it is stuck."""
        files = [directory / f"rank-{other}.place" for other in range(world_size)]
        told: Place | None = None
        while not self._ended.wait(min(1.0, self.seconds / 5)):
            place, still = self._place, time.monotonic() - self._moved
            if place != told:
                with suppress(OSError):  # on a full disk, which the training itself tells
                    files[rank].write_text(json.dumps(place), encoding="ascii")
                    told = place
            if still < self.seconds:
                continue
            # A process that is ahead waits; should the one behind not end, it ends later.
            if place <= min(map(_read, files)) or still > 2 * self.seconds:
                self._end(directory, rank, place, still)

    def _end(self, directory: Path, rank: int, place: Place, still: float) -> None:
        step, phase, window = place
        where = f"{PHASES[phase]}, step {step + 1}, window {window}"
        what = f"has not moved for {still:.0f} s ({where})"
        frame = sys._current_frames()[threading.main_thread().ident or 0]
        stack = "".join(traceback.format_stack(frame))
        with suppress(OSError):
            Failure(rank, what, stack, died=True).write(directory)
        sys.stderr.write(f"rank {rank} {what}\n{stack}")
        sys.stderr.flush()
        os._exit(1)


def _read(file: Path) -> Place:
    try:
        step, phase, window = json.loads(file.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return (0, 0, 0)
    return step, phase, window
