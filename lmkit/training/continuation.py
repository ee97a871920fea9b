"""The callback that fits a checkpoint's state to what has changed when a run resumes from it."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason
from torch.optim.lr_scheduler import ReduceLROnPlateau

from lmkit.run import history
from lmkit.training.callbacks import Checkpoint
from lmkit.training.callbacks.averaging import WeightAveraging
from lmkit.training.task import Task

log = logging.getLogger(__name__)

# Keys on which the learning rate of a step depends, and keys of torch's schedules with a length.
RATES = re.compile(r"optimizer\.|scheduler\.|trainer\.max_(epochs|steps)$")
LENGTHS = ("T_max", "total_steps", "epochs", "total_iters", "max_iters", "milestones")


class Continuation(Callback):
    """Fits the state of a checkpoint to what has changed since it was written.

    The schedule, and with it the learning rate, is set to where one of the present length would be
    by now. The best score on another validation text is forgotten. A training that early stopping
    has ended stays ended. This callback must come before the others.
    """

    def __init__(self, then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
        """then: the manifest of the checkpoint, empty without one. now: the run's identity."""
        self.then = then
        self.now = now
        before = then.get("config")
        known = before if isinstance(before, Mapping) else now["config"]  # older ones have a hash
        self.changed = history.differences(known, now["config"])
        self.may_have_changed = bool(then) and known is not before

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """The states of the other callbacks are restored from `checkpoint` after this."""
        then, now = self.then.get("splits", {}), self.now["splits"]
        if then and then.get("valid") != now.get("valid"):
            self._forget_validations(trainer, checkpoint)
            if isinstance(pl_module, Task):  # its own state has been restored already
                pl_module.forget_validations()
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            state = checkpoint["callbacks"].get(callback.state_key)
            if isinstance(callback, EarlyStopping) and state:
                state["patience"] = callback.patience  # else the checkpoint's would replace it
                again = any(key.startswith("callbacks.early_stopping.") for key in self.changed)
                if again and state["wait_count"] < callback.patience:
                    state["stopping_reason"] = EarlyStoppingReason.NOT_STOPPED.value

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, EarlyStopping) and callback.stopping_reason.value:
                trainer.should_stop = True  # as it was when the checkpoint was written
                log.info("early stopping has ended the training; with more patience it goes on")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.may_have_changed or any(RATES.match(key) for key in self.changed):
            assert isinstance(pl_module, Task)
            self._reschedule(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the last checkpoint before a callback replaces the weights by their average."""
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, Checkpoint):
                callback.on_train_end(trainer, pl_module)

    def _forget_validations(self, trainer: Trainer, checkpoint: dict[str, Any]) -> None:
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            state = checkpoint["callbacks"].get(callback.state_key)
            if isinstance(callback, WeightAveraging) and state:
                callback.averaging.load_state_dict(state)
                callback.averaging.forget_validations()
                checkpoint["callbacks"][callback.state_key] = callback.state_dict()
            if not state or not str(getattr(callback, "monitor", None)).startswith("val/"):
                continue
            if isinstance(callback, Checkpoint):
                state["best_score"] = None  # its file stays until another is the best
            else:
                checkpoint["callbacks"][callback.state_key] = callback.state_dict()
        for state in checkpoint["lr_schedulers"]:
            if "mode_worse" in state:  # ReduceLROnPlateau
                state |= {"best": state["mode_worse"], "num_bad_epochs": 0}

    def _reschedule(self, trainer: Trainer, task: Task) -> None:
        """Repeat the schedule's steps on another optimiser, and adopt its state and rates."""
        trial = task.make_optimizer(task.parameters())
        restored = [config.scheduler for config in trainer.lr_scheduler_configs]
        follows = restored and not isinstance(restored[0], ReduceLROnPlateau)
        if follows:
            schedule = task.make_scheduler(trial, trainer.estimated_stepping_batches)
            assert schedule is not None
            done = getattr(restored[0], "last_epoch", None)
            if done is None:  # ChainedScheduler
                done = restored[0]._schedulers[0].last_epoch  # type: ignore[attr-defined]
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the warning that the optimiser has made no step
                for _ in range(done):
                    schedule.step()
            restored[0].load_state_dict(schedule.state_dict())
            self._warn_of_lengths()
        if follows or any(history.RATE.match(key) for key in self.changed):
            known, before = trial.param_groups, trainer.optimizers[0].param_groups[0]["lr"]
            for number, group in enumerate(trainer.optimizers[0].param_groups):
                now = known[number if number < len(known) else 0]  # a callback may have added one
                # A run keeps the blocks of MuonWithAdam, which earlier versions divided otherwise.
                group.update({k: v for k, v in now.items() if k not in ("params", "blocks")})
            self._warn_of_rise(before, known[0]["lr"])

    def _warn_of_rise(self, before: float, now: float) -> None:
        """Warn where the learning rate had gone down for the end of a shorter training."""
        longer = any(key.startswith(("trainer.max_", "scheduler.decay_")) for key in self.changed)
        if longer and now > before and not any(map(history.RATE.match, self.changed)):
            log.warning(
                "the learning rate goes back up, from %.3g to %.3g: it had gone down for the end "
                "of a shorter training",
                before,
                now,
            )

    def _warn_of_lengths(self) -> None:
        """Warn where the training's length has changed but a schedule has a length of its own."""
        inner = history.inner_keys("scheduler", self.now["config"]["scheduler"])
        own = {path: value for path, key, value in inner if key in LENGTHS}
        longer = {key: pair for key, pair in self.changed.items() if key.startswith("trainer.max_")}
        if longer and own and not any(key.startswith("scheduler.") for key in self.changed):
            lengths = ", ".join(
                f"{key}={now} ({then} before)" for key, (then, now) in longer.items()
            )
            stays = " and ".join(f"{key}={length}" for key, length in own.items())
            several = "are as they were: set them too if they are to follow"
            one = "is as it was: set it too if it is to follow"
            log.warning("%s, but %s %s", lengths, stays, one if len(own) == 1 else several)
