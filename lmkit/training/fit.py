"""What one process does of a run: fit, test the best weights, write the summary."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers.logger import DummyLogger

from lmkit import kernels
from lmkit.assembly import build_model, make_data
from lmkit.config.build import build
from lmkit.config.check import split_node
from lmkit.config.safety import anchored
from lmkit.config.trainer import build_trainer, complaints
from lmkit.errors import exit_code
from lmkit.inference.identity import check_own, identity, recorded
from lmkit.inference.sampling import Sampling, sample_texts
from lmkit.metrics import perplexity
from lmkit.optim import Stepping
from lmkit.run import Run
from lmkit.run.checkpoints import AtomicCheckpointIO, load_checkpoint, read_manifest
from lmkit.system import hardware, threads
from lmkit.system.processes import launched
from lmkit.system.redaction import redacted
from lmkit.system.rendezvous import cluster
from lmkit.system.signals import StopSignals
from lmkit.system.switches import restored
from lmkit.training.callbacks import Checkpoint, Samples, StopOnSignal
from lmkit.training.callbacks.progress import Progress
from lmkit.training.continuation import Continuation
from lmkit.training.limits import in_windows
from lmkit.training.loggers import JsonlLogger
from lmkit.training.loggers.tracker import Account, Tracking
from lmkit.training.loggers.trackers import make_trackers
from lmkit.training.pace import Pace
from lmkit.training.task import Task
from lmkit.windows import DataModule

log = logging.getLogger(__name__)


def work(
    run: Run,
    config: dict[str, Any],
    newest: Path | None,
    data: DataModule | None = None,
    pace: Pace | None = None,
) -> None:
    """Train to the end, from the checkpoint `newest` if there is one; raises `Stopped`.

    data: that of the config, where this process has opened it already. pace: what watches its
    speed.
    """
    with (
        restored(),
        StopSignals() as signals,
        kernels.use(config["kernels"]),
        threads.use(config["threads"]),
    ):
        quiet()
        if config["trainer"]["accelerator"] == "cuda":  # sums in one order, for the same bits again
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True, warn_only=True)
        pl.seed_everything(config["seed"], verbose=False)
        data = data or make_data(config)
        task = make_task(config, data)
        metrics = JsonlLogger(run.path, run.id)
        before = read_manifest(newest) if newest else {}
        account = Account(run.path, before.get("step"), metrics)
        tracking = Tracking(account, make_trackers(config["logger"], run, account))
        here = identity(config, data.prepared)
        own = [Continuation(before, here), StopOnSignal(signals), *([pace] if pace else [])]
        trainer = _make_trainer(run, config, task, data, own, tracking, here)
        if trainer.is_global_zero:
            _describe_data(run, data)
            account.config = _about(run, config, task)
        summary: dict[str, float] = {}
        code = 1
        try:
            with complaints():
                trainer.fit(task, datamodule=data, ckpt_path=newest)
            # A run that had ended already is not validated again.
            summary |= _last_validation(metrics) | _logged(trainer, "val/")
            summary |= _take_best(run, trainer, task)
            if "test" in data.prepared.stores and trainer.limit_test_batches:
                trainer.test(task, datamodule=data, verbose=False)
                summary |= _logged(trainer, "test/")
            summary |= _effort(task, metrics.seconds)
            code = 0
        except BaseException as error:
            summary |= _best(trainer)
            code = exit_code(error)
            raise
        finally:
            for tracker in tracking.trackers:
                tracker.finish(summary, code)
        if trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            run.write("summary.json", summary)


def make_task(config: dict[str, Any], data: DataModule) -> Task:
    """Model, head, regularizers, optimiser and schedule of a checked config, for prepared data."""
    model, head = build_model(config, data.tokenizer.vocabulary_size)
    nodes = config["regularizers"]
    regularizers = {name: build("regularizers", node) for name, node in nodes.items()}

    def make_optimizer(params: Any) -> Any:
        return build("optimizer", config["optimizer"], params=params)

    node, stepping = split_node("scheduler", config["scheduler"] or {})

    def make_scheduler(optimizer: Any, num_steps: float) -> Any:
        given = {"optimizer": optimizer, "num_steps": num_steps}
        return build("scheduler", node, **given) if node else None

    splits = {"val": "valid", "test": "test"} if data.tokenizer.lossless else {}
    stores = data.prepared.stores
    known = [(s, split) for s, split in splits.items() if split in stores]
    num_bytes = {
        s: (stores[split].num_tokens, n) for s, split in known if (n := stores[split].num_bytes)
    }
    seed, when = config["seed"], Stepping(**stepping)
    return Task(model, head, make_optimizer, make_scheduler, num_bytes, seed, when, regularizers)


def _make_trainer(
    run: Run,
    config: dict[str, Any],
    task: Task,
    data: DataModule,
    own: list[pl.Callback],
    tracking: Tracking,
    identity: Mapping[str, Any],
) -> pl.Trainer:
    def generate(module: pl.LightningModule, prompt: str, num_tokens: int, seed: int) -> str:
        sampling = Sampling(num_tokens=num_tokens, seed=seed)
        parts = (task.model, task.head, data.tokenizer)
        return sample_texts(*parts, prompt, sampling, data.protocol)[0]

    samples = {"generate": generate, "path": run.path / "samples.jsonl"}
    callbacks = [
        build("callbacks", anchored(node, run.path), **samples)
        for node in config["callbacks"].values()
    ]
    # Checkpoint saves the state of the callbacks before it.
    callbacks.sort(key=lambda callback: isinstance(callback, Checkpoint))
    account = tracking.account
    # In the other processes a callback finds something in their place.
    loggers = [t.logger for t in tracking.trackers] or [DummyLogger() for _ in config["logger"]]
    for callback in callbacks:
        if isinstance(callback, Samples):
            account.samples = callback
            callback.followers = [tracker.log_sample for tracker in tracking.trackers]
    trainer = build_trainer(
        in_windows(config["trainer"], data),
        logger=[account.metrics, *loggers],
        callbacks=[Progress(), *own, tracking, *callbacks],
        default_root_dir=run.path,
        plugins=[AtomicCheckpointIO(identity), cluster(launched())],
    )
    account.metrics.follow(trainer)
    return trainer


def _about(run: Run, config: dict[str, Any], task: Task) -> dict[str, Any]:
    """The config of a run for its loggers, as config.yaml has it, and what identifies it."""
    data = recorded(run)
    here = run.read("environment.json")
    return {
        **redacted(config),
        "num_parameters": _num_parameters(task),
        "hashes": {
            "tokenizer": data["tokenizer"],
            "store": data["store"],
            **{split: described["sha256"] for split, described in data["splits"].items()},
        },
        "git": here["git"],
        "versions": here["versions"],
    }


def _num_parameters(task: Task) -> int:
    return sum(parameter.numel() for parameter in task.parameters())


def _describe_data(run: Run, data: DataModule) -> None:
    """Write `data.json`, or add to it what has changed, and the tokenizer, which travels along."""
    data.tokenizer.save(run.path)
    run.add("data.json", data.prepared.describe())


def _logged(trainer: pl.Trainer, stage: str) -> dict[str, float]:
    values = trainer.callback_metrics
    return {key: float(values[key]) for key in values if key.startswith(stage)}


def _last_validation(metrics: JsonlLogger) -> dict[str, float]:
    """As metrics.jsonl has it."""
    rows = [row for row in metrics.rows() if "val/nll" in row]
    return {key: value for row in rows[-1:] for key, value in row.items() if key[:4] == "val/"}


def _take_best(run: Run, trainer: pl.Trainer, task: Task) -> dict[str, float]:
    """Give the task the weights of the best checkpoint; what was best about them."""
    path = run.path / "checkpoints" / "best.ckpt"
    if trainer.fast_dev_run:  # type: ignore[attr-defined]
        return {}
    if not path.exists():
        if _best(trainer):
            log.warning("%s is gone: the last weights take its place", path)
        return _best(trainer)
    check_own(run, path)
    checkpoint = load_checkpoint(path)
    task.load_state_dict(checkpoint["state_dict"])
    return {"best/step": checkpoint["global_step"]} | _best(trainer)


def _best(trainer: pl.Trainer) -> dict[str, float]:
    """The best validation so far."""
    best: dict[str, float] = {}
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, Checkpoint) and callback.best_score is not None:
            best[f"best/{callback.monitor}"] = callback.best_score
            if callback.monitor == "val/nll":
                best["best/val/perplexity"] = perplexity(callback.best_score)
    return best


def _effort(task: Task, seconds: float) -> dict[str, float]:
    """What the run took: its speed and time over all resumes, this process's memory."""
    return {
        "tokens_per_second": task.tokens_seen / max(task.seconds, 1e-9),
        "peak_memory_bytes": hardware.peak_memory(task.device),
        "num_parameters": _num_parameters(task),
        "tokens": task.tokens_seen,
        "seconds": seconds,
    }


def quiet() -> None:
    """Leave out what Lightning says about itself and what its user cannot mend, `restored()`."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    logging.getLogger("lightning.pytorch.loggers.mlflow").setLevel(logging.ERROR)
    logging.getLogger("mlflow").setLevel(logging.WARNING)  # of the tables that it makes
    logging.getLogger("alembic").setLevel(logging.WARNING)
    # What is logged at the end of an evaluation is summed over the processes already.
    warnings.filterwarnings("ignore", ".*It is recommended to use `self.log.*sync_dist=True.*")
    warnings.filterwarnings("ignore", "The number of training batches .* is smaller than the log")
    # There is no validation to step after yet.
    warnings.filterwarnings("ignore", "ReduceLROnPlateau conditioned on metric .* not available")
    # Only scheduler.interval=epoch makes it so.
    warnings.filterwarnings("ignore", "A `OneCycleLR` scheduler is using 'interval': 'epoch'")
    # lightning 2.6 asks torch 2.13's pytree the old way.
    warnings.filterwarnings("ignore", ".*LeafSpec.* is deprecated", FutureWarning)
