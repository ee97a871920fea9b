"""The callback that ends a process of several when it hangs, and reports its rank and stack."""

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

Position = tuple[int, int, int]  # updates done, phase of the next, window of that phase
PHASES = ("forward", "backward", "update", "validation", "end of validation", "checkpoint")


class Watchdog(Callback):
    """Ends this process if it has not moved for long and is behind all others, which wait for it;
    only during a fit of several processes.

    Without this the others would wait for half an hour, and then report the wrong process.

    seconds: without moving, after which it is ended.
    """

    def __init__(self, *, seconds: Positive = 600.0) -> None:
        self.seconds = seconds
        self._position: Position = (0, 0, 0)
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
        self._move(trainer, 1, self._position[2])

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._move(trainer, 2, self._position[2])

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
        self._position = (trainer.global_step, phase, window)
        self._moved = time.monotonic()

    def _watch(self, directory: Path, rank: int, world_size: int) -> None:
        """Runs in a thread: writes this process's position for the others, and checks whether it
        hangs."""
        files = [directory / f"rank-{other}.place" for other in range(world_size)]
        written: Position | None = None
        while not self._ended.wait(min(1.0, self.seconds / 5)):
            position, still = self._position, time.monotonic() - self._moved
            if position != written:
                with suppress(OSError):  # a full disk, which the training itself reports
                    files[rank].write_text(json.dumps(position), encoding="ascii")
                    written = position
            if still < self.seconds:
                continue
            # A process that is ahead waits; it ends later if the one behind does not.
            if position <= min(map(_read, files)) or still > 2 * self.seconds:
                self._end(directory, rank, position, still)

    def _end(self, directory: Path, rank: int, position: Position, still: float) -> None:
        step, phase, window = position
        where = f"{PHASES[phase]}, step {step + 1}, window {window}"
        what = f"has not moved for {still:.0f} s ({where})"
        frame = sys._current_frames()[threading.main_thread().ident or 0]
        stack = "".join(traceback.format_stack(frame))
        with suppress(OSError):
            Failure(rank, what, stack, died=True).write(directory)
        sys.stderr.write(f"rank {rank} {what}\n{stack}")
        sys.stderr.flush()
        os._exit(1)


def _read(file: Path) -> Position:
    try:
        step, phase, window = json.loads(file.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return (0, 0, 0)
    return step, phase, window
