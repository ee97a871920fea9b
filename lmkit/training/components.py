"""The objects of a training: task, callbacks and trainer of a checked config."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers.logger import DummyLogger

from lmkit.assembly import build_model
from lmkit.config.build import build, split_node
from lmkit.config.optimizer import make_optimizer, named_parameters
from lmkit.config.safety import anchored
from lmkit.config.trainer import build_trainer
from lmkit.inference.sampling import Sampling, sample_texts
from lmkit.optim import Stepping
from lmkit.run import Run
from lmkit.run.checkpoints import AtomicCheckpointIO
from lmkit.system.processes import launched
from lmkit.system.rendezvous import cluster
from lmkit.training.callbacks import Checkpoint, Samples
from lmkit.training.callbacks.averaging import WeightAveraging
from lmkit.training.limits import in_windows
from lmkit.training.loggers import JsonlLogger
from lmkit.training.loggers.tracker import Account, Tracking
from lmkit.training.loggers.trackers import make_trackers
from lmkit.training.task import Task
from lmkit.windows import DataModule


def make_task(config: dict[str, Any], data: DataModule) -> Task:
    """The task of a checked config for prepared data: model, head, regularizers, optimiser and
    schedule."""
    model, head = build_model(config, data.tokenizer.vocabulary_size)
    if head.wants_counts:
        head.learn_counts(torch.from_numpy(data.prepared.token_counts()))
    nodes = config["regularizers"]
    regularizers = {name: build("regularizers", node) for name, node in nodes.items()}

    def optimize(params: Any) -> Any:
        return make_optimizer(config["optimizer"], named_parameters(model, head))

    node, stepping = split_node("scheduler", config["scheduler"] or {})

    def make_scheduler(optimizer: Any, num_steps: float) -> Any:
        passed = {"optimizer": optimizer, "num_steps": num_steps}
        return build("scheduler", node, **passed) if node else None

    splits = {"val": "valid", "test": "test"} if data.tokenizer.lossless else {}
    stores = data.prepared.stores
    known = [(s, split) for s, split in splits.items() if split in stores]
    num_bytes = {
        s: (stores[split].num_tokens, n) for s, split in known if (n := stores[split].num_bytes)
    }
    seed, when = config["seed"], Stepping(**stepping)
    return Task(model, head, optimize, make_scheduler, num_bytes, seed, when, regularizers)


def make_tracking(run: Run, config: Mapping[str, Any], step: int | None) -> Tracking:
    """The loggers of a run that resumes from `step`, and metrics.jsonl, which they follow."""
    account = Account(run.path, step, JsonlLogger(run.path, run.id))
    return Tracking(account, make_trackers(config["logger"], run, account))


def make_callbacks(
    run: Run, config: Mapping[str, Any], task: Task, data: DataModule, tracking: Tracking
) -> list[pl.Callback]:
    """The callbacks of a config, the checkpoint last, as it saves the state of the others, and
    before it the average of the weights."""

    def generate(module: pl.LightningModule, prompt: str, num_tokens: int, seed: int) -> str:
        sampling = Sampling(num_tokens=num_tokens, seed=seed)
        trained = (task.model, task.head, data.tokenizer)
        return sample_texts(*trained, prompt, sampling, data.protocol)[0]

    samples = {"generate": generate, "samples_path": run.path / "samples.jsonl"}
    callbacks = [
        build("callbacks", anchored(node, run.path), **samples)
        for node in config["callbacks"].values()
    ]
    for callback in callbacks:
        if isinstance(callback, Samples):
            tracking.account.samples = callback
            callback.followers = [tracker.log_sample for tracker in tracking.trackers]
    if config["averaging"]:
        callbacks.append(WeightAveraging(build("averaging", config["averaging"])))
    return sorted(callbacks, key=lambda callback: isinstance(callback, Checkpoint))


def make_trainer(
    run: Run,
    config: Mapping[str, Any],
    data: DataModule,
    callbacks: list[pl.Callback],
    tracking: Tracking,
    identity: Mapping[str, Any],
) -> pl.Trainer:
    """Lightning's trainer; identity: the config and text that its checkpoints record."""
    # Processes other than the first have dummies, for callbacks that look for a logger.
    loggers = [t.logger for t in tracking.trackers] or [DummyLogger() for _ in config["logger"]]
    metrics = tracking.account.metrics
    trainer = build_trainer(
        in_windows(config["trainer"], data),
        logger=[metrics, *loggers],
        callbacks=callbacks,
        default_root_dir=run.path,
        plugins=[AtomicCheckpointIO(identity), cluster(launched())],
    )
    metrics.follow(trainer)
    return trainer
