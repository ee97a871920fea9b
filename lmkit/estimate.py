"""What a training of a config takes on this machine: some of its own steps, timed."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch

from lmkit import hardware, kernels
from lmkit.allocator import keep_freed_memory
from lmkit.training import build_trainer, make_data, make_task, quiet

WARM_UP = 3
SECONDS = 5.0
MANY = 10**6  # epochs, of a text that is very short


class Estimate(NamedTuple):
    """tokens: targets of an epoch. On one process, whatever the config says."""

    tokens: int
    num_parameters: int
    tokens_per_second: float
    peak_memory_bytes: int

    @property
    def epoch_seconds(self) -> float:
        return self.tokens / self.tokens_per_second


class _Clock(pl.Callback):
    """Times the steps after the warm-up, and ends the fit after some seconds of them."""

    def __init__(self) -> None:
        self.num_windows = 0
        self.began = 0.0
        self.num_tokens = 0
        self.seconds = 0.0

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        self.num_windows += 1
        if self.num_windows < WARM_UP:
            return
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize()
        now = time.perf_counter()
        if self.num_windows == WARM_UP:
            self.began = now
            return
        self.num_tokens += batch.num_targets
        self.seconds = now - self.began
        trainer.should_stop = self.seconds > SECONDS


def estimate(config: dict[str, Any]) -> Estimate:
    """Train a checked config for some seconds, leaving nothing behind but the prepared text."""
    pl.seed_everything(config["seed"], verbose=False)
    data = make_data(config)
    task = make_task(config, data)
    tokens = data.prepared.stores["train"].num_tokens
    clock = _Clock()
    alone = {"devices": 1, "num_nodes": 1, "strategy": "auto"}
    unending = {"max_epochs": MANY, "max_steps": -1, "max_time": None, "fast_dev_run": False}
    unchecked = {"limit_val_batches": 0, "num_sanity_val_steps": 0, "profiler": None}
    quiet()
    node = {**config["trainer"], **alone, **unending, **unchecked}
    trainer = build_trainer(node, callbacks=[clock], logger=False)
    keep_freed_memory()
    hardware.forget_peak_memory()
    with kernels.use(config["kernels"]):
        trainer.fit(task, datamodule=data)
    return Estimate(
        tokens=tokens,
        num_parameters=sum(parameter.numel() for parameter in task.parameters()),
        tokens_per_second=clock.num_tokens / max(clock.seconds, 1e-9),
        peak_memory_bytes=hardware.peak_memory(task.device),
    )
