"""The callback that writes checkpoints, from which a run resumes as if it had never stopped.

A checkpoint is the state between two steps: everything that belongs to a step (its update, its
rows in the logs, its validation, the schedule's step) is done, nothing of the next has begun.
Lightning has no hook there: a checkpoint that is due is written when the next batch starts, and
the loop counters, by then one batch ahead, are set back in the file.
"""

import copy
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from lmkit.errors import UserError
from lmkit.ranges import Size
from lmkit.run.checkpoints import link, manifest_path, steps
from lmkit.system.rendezvous import gather
from lmkit.training.fit_loop import (
    Position,
    current_position,
    forget_restart,
    is_fitting,
    is_within_update,
    loader_states,
    restore_loaders,
    rewind,
)
from lmkit.training.random_state import random_state, set_random_state


class Checkpoint(Callback):
    """Writes `checkpoints/step-<n>.ckpt` with `last.ckpt` and `best.ckpt` as links to them.

    At intervals, when `monitor` is better than ever, at the end, and on a graceful stop; always
    between two optimiser steps. Comes last in the list of callbacks, so that it saves their state.

    every_n_train_steps: updates between two checkpoints; null: none by updates.
    every_n_epochs: epochs between two checkpoints; null: none by epochs.
    monitor: the value of a validation that says which checkpoint is the best; null: none is.
    mode: whether the best is the lowest or the highest.
    keep: the newest so many stay, and the best.
    """

    does_without_validation = True  # then no checkpoint is the best

    def __init__(
        self,
        *,
        every_n_train_steps: Size | None = 1000,
        every_n_epochs: Size | None = 1,
        monitor: str | None = "val/nll",
        mode: Literal["min", "max"] = "min",
        keep: Annotated[int, Ge(2)] = 2,
    ) -> None:
        self.every_n_train_steps = every_n_train_steps
        self.every_n_epochs = every_n_epochs
        self.monitor = monitor
        self.mode = mode
        self.keep = keep
        self.best_score: float | None = None
        self.best_step: int | None = None
        self._due = False
        self._better = False
        self._position: Position | None = None
        self._saving = False
        self._restored: list[dict[str, Any]] | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.directory = Path(trainer.default_root_dir) / "checkpoints"
        if trainer.is_global_zero and stage == "fit":
            self.directory.mkdir(parents=True, exist_ok=True)
            for temporary in self.directory.glob(".*.tmp"):  # of a process killed while writing
                temporary.unlink()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        restore_loaders(trainer)  # a module of somebody else's does not

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self._restored is not None:
            self._resume(trainer, self._restored)
            self._restored = None
        if self._due and batch_idx % trainer.accumulate_grad_batches == 0:
            self.save(trainer)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        ended = trainer.is_last_batch
        # `limit_train_batches` ends an epoch without the loader's knowing.
        states = loader_states(trainer)
        loaders = [{**copy.deepcopy(state), "ended": ended} for state in states]
        self._position = Position(trainer.current_epoch, batch_idx + 1, ended, loaders)
        if is_within_update(trainer):  # .grad is not in a checkpoint
            return
        if self.every_n_train_steps and trainer.global_step % self.every_n_train_steps == 0:
            self._due = True
        if ended and self.every_n_epochs and (trainer.current_epoch + 1) % self.every_n_epochs == 0:
            self._due = True

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._restored is not None and not trainer.sanity_checking:
            self._resume(trainer, self._restored)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not is_fitting(trainer) or self.monitor is None:
            return
        if self.monitor not in trainer.callback_metrics:
            logged = ", ".join(sorted(trainer.callback_metrics))
            raise UserError(
                f"callbacks.checkpoint.monitor={self.monitor}: "
                f"validation logs {logged or 'nothing'}"
            )
        score = float(trainer.callback_metrics[self.monitor])
        sign = 1 if self.mode == "min" else -1
        if self.best_score is None or sign * score < sign * self.best_score:
            self.best_score = score
            self._better = self._due = True

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Training ends within an epoch (max_steps, max_time, early stopping), but Lightning is
        # about to count the epoch as done and to log it.
        mid_epoch = self._position is not None and not self._position.ended
        if mid_epoch and not is_within_update(trainer):
            self.save(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._position is not None and self._position.ended:
            self.save(trainer)
        self._position = None  # from here on a callback may change the weights outside of a step

    def save(self, trainer: Trainer) -> None:
        """Write the state between the last step and the next; every process must call it.

        When it returns, every process sees the new `best.ckpt` and `last.ckpt`.
        """
        if self._position is None or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        if self._better:
            self.best_step = trainer.global_step
        self._due = self._better = False
        self._saving = True
        try:
            path = self._path(trainer.global_step)
            trainer.save_checkpoint(path, weights_only=False)
        finally:
            self._saving = False
        if trainer.is_global_zero:
            link(self.directory / "last.ckpt", path)
            if self.best_step is not None and self._path(self.best_step).is_file():
                link(self.directory / "best.ckpt", self._path(self.best_step))
            self._remove_old(path)
        trainer.strategy.barrier("Checkpoint.save")

    def state_dict(self) -> dict[str, Any]:
        return {"best_score": self.best_score, "best_step": self.best_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best_score = state_dict["best_score"]
        self.best_step = state_dict["best_step"]

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint["random"] = gather(random_state())
        checkpoint["loggers"] = {
            type(logger).__name__: logger.state_dict()
            for logger in trainer.loggers
            if hasattr(logger, "state_dict")
        }
        if self._saving and self._position is not None:
            now = current_position(trainer, self._position)
            checkpoint["epoch"] = now.epoch
            rewind(checkpoint["loops"]["fit_loop"], now, validate=trainer.validating)

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if trainer.state.fn != TrainerFn.FITTING:
            return
        self._restored = checkpoint["random"]
        for logger in trainer.loggers:
            if state := checkpoint["loggers"].get(type(logger).__name__):
                logger.load_state_dict(state)  # type: ignore[attr-defined]

    def _resume(self, trainer: Trainer, random_states: list[dict[str, Any]]) -> None:
        set_random_state(random_states[trainer.global_rank % len(random_states)])
        forget_restart(trainer)

    def _path(self, step: int) -> Path:
        return self.directory / f"step-{step:09d}.ckpt"

    def _remove_old(self, newest: Path) -> None:
        """Delete checkpoints up to the one just written, except the newest `keep` and the best."""
        paths = [path for path in steps(self.directory) if path <= newest]
        for path in paths[: -self.keep]:
            if self.best_step is None or path != self._path(self.best_step):
                manifest_path(path).unlink(missing_ok=True)
                path.unlink()
