"""Estimates the time and memory of a training on this machine by timing some of its steps."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch

from lmkit import kernels
from lmkit.assembly import make_data
from lmkit.config.trainer import build_trainer, complaints
from lmkit.inference.trained import any_threads
from lmkit.system import hardware, threads
from lmkit.system.rendezvous import cluster
from lmkit.system.switches import restored
from lmkit.system.threads import Threads
from lmkit.training.components import make_task
from lmkit.training.fit import quiet
from lmkit.training.limits import in_windows
from lmkit.windows import DataModule

WARM_UP = 3  # windows, or a second
SECONDS = 3.0  # of steps with the chosen number of threads
SHORT = 15.0  # seconds; a training that is over by then is not worth a trial
EVALUATED = 6  # windows
MANY = 10**6  # epochs, enough even for a very short text


class Estimate(NamedTuple):
    """Size, speed and duration of a training on one process, however many the config asks for.

    tokens: targets of an epoch. threads: the chosen number, with the speeds that were measured.
    any_threads: whether results are the same bit for bit with another number. steps: updates of
    the whole training. seconds: its duration with validations and test. Both are infinite for a
    training without an end.
    """

    tokens: int
    num_parameters: int
    tokens_per_second: float
    peak_memory_bytes: int
    threads: Threads
    any_threads: bool
    steps: float
    seconds: float

    @property
    def epoch_seconds(self) -> float:
        """0 where an epoch has no windows."""
        return self.tokens / self.tokens_per_second if self.tokens_per_second else 0.0


class _Clock(pl.Callback):
    """Times steps after a warm-up to choose the number of threads, and ends the fit after `wanted`
    seconds with the chosen number; with `unless_short`, at once if the whole training is shorter
    than SHORT."""

    def __init__(
        self, node: Mapping[str, Any], threads: Threads, wanted: float, unless_short: bool
    ) -> None:
        self.node = node  # the config of the training's own trainer
        self.threads = threads
        self.wanted = wanted
        self.unless_short = unless_short
        self.num_windows = 0  # trained on, the warm-up included
        self.windows_of_epoch = self.windows_of_all = 0.0
        self.num_tokens = self.timed = 0  # tokens and windows in `seconds`
        self.seconds = 0.0
        self.evaluation = 0.0  # seconds of the fastest window
        self._began = self._before = 0.0

    @property
    def seconds_per_window(self) -> float:
        return self.seconds / max(self.timed, 1)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.windows_of_epoch = trainer.num_training_batches
        self.windows_of_all = _num_windows(self.node, self.windows_of_epoch)
        self._began = self._before = time.perf_counter()

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize()
        now = time.perf_counter()
        seconds, self._before = now - self._before, now
        self.num_windows += 1
        if self.num_windows <= WARM_UP and now - self._began < 1:
            return
        if self.threads.settled or not self.timed:
            self.num_tokens += batch.num_targets
            self.seconds += seconds
            self.timed += 1
        short = self.unless_short and self.seconds_per_window * self.windows_of_all < SHORT
        if not self.threads.settled:
            self.threads.worked(batch.num_targets, seconds)
            if self.threads.settled:  # only steps with the chosen number count
                self.num_tokens, self.seconds, self.timed = 0, 0.0, 0
        elif self.seconds > self.wanted:
            trainer.should_stop = True
        trainer.should_stop |= short

    def on_validation_batch_start(self, *_: Any) -> None:
        self._before = time.perf_counter()

    def on_validation_batch_end(self, *_: Any) -> None:
        seconds = time.perf_counter() - self._before
        self.evaluation = min(self.evaluation or seconds, seconds)


def estimate(
    config: dict[str, Any],
    data: DataModule | None = None,
    *,
    seconds: float | None = None,
    unless_short: bool = False,
) -> Estimate:
    """Train a checked config for some seconds, leaving nothing behind but the prepared text.

    The number of threads is the config's, or chosen by a trial. With `unless_short` a training
    that will be over soon is timed by a single window. data: the config's data, if this process has
    opened it already.
    """
    data = data or make_data(config)
    stores = data.prepared.stores
    hardware.forget_peak_memory()
    fixed = config["threads"] is not None or config["trainer"]["accelerator"] != "cpu"
    with restored(), kernels.use(config["kernels"]), threads.use(None):
        quiet()
        chosen = Threads(config["threads"] or torch.get_num_threads(), fixed=fixed)
        pl.seed_everything(config["seed"], verbose=False)
        # A schedule could run out of steps, or watch a value that is not validated here.
        task = make_task({**config, "scheduler": None}, data)
        wanted = SECONDS if seconds is None else seconds
        clock = _Clock(config["trainer"], chosen, wanted, unless_short)
        node = in_windows(_unending(config["trainer"]), data)
        alone = {"plugins": [cluster(None)], "logger": False}
        trainer = build_trainer(node, callbacks=[clock], **alone)
        free = any_threads(
            task.model, task.head, config["trainer"]["accelerator"], config["trainer"]["precision"]
        )
        with complaints():
            trainer.fit(task, datamodule=data)
            if "valid" in stores:
                trainer.validate(task, datamodule=data, verbose=False)
    rate = chosen.rates[chosen.number] = clock.num_tokens / max(clock.seconds, 1e-9)
    return Estimate(
        tokens=data.train_dataloader().epoch_tokens,
        num_parameters=sum(parameter.numel() for parameter in task.parameters()),
        tokens_per_second=rate,
        peak_memory_bytes=hardware.peak_memory(task.device),
        threads=chosen,
        any_threads=free,
        steps=clock.windows_of_all / trainer.accumulate_grad_batches,
        seconds=_whole(config["trainer"], data, clock),
    )


def _unending(trainer: Mapping[str, Any]) -> dict[str, Any]:
    """A trainer's config for one process that trains until its clock stops it, and then validates
    some windows."""
    alone = {"devices": 1, "num_nodes": 1, "strategy": "auto"}
    unending = {"max_epochs": MANY, "max_steps": -1, "max_time": None, "fast_dev_run": False}
    unchecked = {"check_val_every_n_epoch": MANY, "val_check_interval": None}
    few = {"limit_val_batches": EVALUATED, "num_sanity_val_steps": 0, "profiler": None}
    return {**trainer, **alone, **unending, **unchecked, **few}


def _num_windows(trainer: Mapping[str, Any], windows_of_epoch: float) -> float:
    """The number of windows until the trainer's limits end the training, infinite if unknown."""
    epochs, steps = trainer.get("max_epochs"), trainer.get("max_steps", -1)
    if trainer.get("max_time") is not None:
        return math.inf
    if epochs is None:
        epochs = 1000 if steps == -1 else -1
    by_epochs = math.inf if epochs == -1 else epochs * windows_of_epoch
    by_steps = math.inf if steps == -1 else steps * trainer.get("accumulate_grad_batches", 1)
    return min(by_epochs, by_steps)


def _whole(trainer: Mapping[str, Any], data: DataModule, clock: _Clock) -> float:
    """The seconds of a training with a validation after each epoch, and a test."""
    if math.isinf(clock.windows_of_all):
        return math.inf
    stores = data.prepared.stores
    evaluated = {
        split: _limited(trainer.get(f"limit_{stage}_batches"), len(data.loader(split)))
        for stage, split in (("val", "valid"), ("test", "test"))
        if split in stores
    }
    epochs = math.ceil(clock.windows_of_all / max(clock.windows_of_epoch, 1))
    windows = epochs * evaluated.get("valid", 0) + evaluated.get("test", 0)
    return clock.windows_of_all * clock.seconds_per_window + windows * clock.evaluation


def _limited(limit: float | None, windows: int) -> float:
    """The number of windows under Lightning's `limit_..._batches`, which is a number or a share."""
    if limit is None:
        return windows
    return min(limit, windows) if isinstance(limit, int) else limit * windows


def lasting(seconds: float) -> str:
    """Seconds as a text such as `3 min 20 s`, rounded to the precision of an estimate."""
    if seconds < 60:
        return f"{max(round(seconds), 1)} s"
    if seconds < 600:
        minutes, rest = divmod(round(seconds / 10) * 10, 60)
        return f"{minutes} min" + (f" {rest} s" if rest else "")
    if seconds < 3600:
        return f"{round(seconds / 60)} min"
    hours = timedelta(seconds=round(seconds / 600) * 600)
    return f"{hours.days} days" if hours.days > 1 else f"{hours / timedelta(hours=1):.1f} h"
