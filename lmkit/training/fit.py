"""The work of a run in one process: fit, test the best weights, write the summary."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

from lmkit import kernels
from lmkit.assembly import make_data
from lmkit.config.trainer import complaints
from lmkit.inference.identity import identity, recorded
from lmkit.run import Run
from lmkit.run.checkpoints import read_manifest
from lmkit.system import threads
from lmkit.system.redaction import redacted
from lmkit.system.signals import StopSignals
from lmkit.system.switches import restored
from lmkit.training.callbacks import Checkpoint, StopOnSignal
from lmkit.training.callbacks.progress import Progress
from lmkit.training.components import make_callbacks, make_task, make_tracking, make_trainer
from lmkit.training.continuation import Continuation
from lmkit.training.counted import count
from lmkit.training.initial import NAME as INIT
from lmkit.training.initial import begin
from lmkit.training.loggers.tracker import Tracking
from lmkit.training.pace import Pace
from lmkit.training.summary import concluding, effort, logged, num_parameters, take_best, validated
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

    data: the config's data, if this process has opened it already. pace: watches the speed.
    """
    with restored(), StopSignals() as signals, computing(config):
        data = data or make_data(config)
        task = make_task(config, data)
        began = _begin(config, task, data, newest)
        before, here = read_manifest(newest) if newest else {}, identity(config, data.prepared)
        tracking = make_tracking(run, config, before.get("step"))
        callbacks = [
            *(Progress(), Continuation(before, here), StopOnSignal(signals)),
            *([pace] if pace else []),
            *(tracking, *make_callbacks(run, config, task, data, tracking)),
        ]
        trainer = make_trainer(run, config, data, callbacks, tracking, here)
        if trainer.is_global_zero:
            _describe(run, config, task, data, tracking)
            if began:
                run.write(INIT, began)
            _warn_without_checkpoints(trainer)
        with concluding(trainer, tracking) as summary:
            if task.model.counted:
                summary |= _counted(run, trainer, task, data, tracking, here, newest)
            else:
                with complaints():
                    trainer.fit(task, datamodule=data, ckpt_path=newest)
                summary |= validated(trainer, tracking.account.metrics)
                summary |= take_best(run, trainer, task)
            if "test" in data.prepared.stores and trainer.limit_test_batches:
                trainer.test(task, datamodule=data, verbose=False)
                summary |= logged(trainer, "test/")
            summary |= effort(task, tracking.account.metrics.seconds)
        if trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            run.write("summary.json", summary)


def _counted(
    run: Run,
    trainer: pl.Trainer,
    task: Task,
    data: DataModule,
    tracking: Tracking,
    identity: Mapping[str, Any],
    newest: Path | None,
) -> dict[str, float]:
    """Count the model and validate it, which makes it the best; returns the scores."""
    task.trainer = trainer
    count(run, task, data, identity, newest)
    tracking.on_fit_start(trainer, task)
    if "valid" not in data.prepared.stores or not trainer.limit_val_batches:
        return {}
    trainer.validate(task, datamodule=data, verbose=False)
    scores = logged(trainer, "val/")
    best = {f"best/{key}": scores[key] for key in ("val/nll", "val/perplexity")}
    return {**scores, "best/step": 0, **best}


def _begin(
    config: Mapping[str, Any], task: Task, data: DataModule, newest: Path | None
) -> dict[str, Any] | None:
    """The run whose weights a task begins with, if it does."""
    if newest or not config.get("init"):
        return None
    return begin(config, task.model, task.head, data.tokenizer)


@contextmanager
def computing(config: Mapping[str, Any]) -> Iterator[None]:
    """Within this context kernels, threads, seeds and the order of sums are as the config says."""
    with kernels.use(config["kernels"]), threads.use(config["threads"]):
        quiet()
        if config["trainer"]["accelerator"] == "cuda":  # a fixed order of sums, so the same bits
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True, warn_only=True)
            # With them PyTorch would fill all memory that it hands out, hundreds of times a step.
            torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        pl.seed_everything(config["seed"], verbose=False)
        yield


def _describe(
    run: Run, config: Mapping[str, Any], task: Task, data: DataModule, tracking: Tracking
) -> None:
    """Write the tokenizer and `data.json`, or add to it what has changed, into the run directory;
    give the loggers the config."""
    data.tokenizer.save(run.path)
    run.add("data.json", data.prepared.describe())
    tracking.account.config = _about(run, config, task)


def _warn_without_checkpoints(trainer: pl.Trainer) -> None:
    saves = any(isinstance(callback, Checkpoint) for callback in trainer.callbacks)  # type: ignore[attr-defined]
    if not (saves or trainer.fast_dev_run):  # type: ignore[attr-defined]
        log.warning(
            "no checkpoints are written: what is trained can be neither resumed nor used; "
            "with callbacks=[default,...] they are"
        )


def _about(run: Run, config: Mapping[str, Any], task: Task) -> dict[str, Any]:
    """A run's config for its loggers, as in config.yaml, with its hashes, commit and versions."""
    data = recorded(run)
    here = run.read("environment.json")
    return {
        **redacted(config),
        "num_parameters": num_parameters(task),
        "hashes": {
            "tokenizer": data["tokenizer"],
            "store": data["store"],
            **{split: described["sha256"] for split, described in data["splits"].items()},
        },
        "git": here["git"],
        "versions": here["versions"],
    }


def quiet() -> None:
    """Silence what Lightning says about itself and warnings that a user cannot act on; `restored()`
    undoes it."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    logging.getLogger("lightning.pytorch.loggers.mlflow").setLevel(logging.ERROR)
    logging.getLogger("mlflow").setLevel(logging.WARNING)  # it reports each table that it makes
    logging.getLogger("alembic").setLevel(logging.WARNING)
    # The values logged at the end of an evaluation are summed over the processes already.
    warnings.filterwarnings("ignore", ".*It is recommended to use `self.log.*sync_dist=True.*")
    warnings.filterwarnings("ignore", "The number of training batches .* is smaller than the log")
    # The schedule watches validations, and there has been none yet.
    warnings.filterwarnings("ignore", "ReduceLROnPlateau conditioned on metric .* not available")
    # This happens only if the user has set scheduler.interval=epoch.
    warnings.filterwarnings("ignore", "A `OneCycleLR` scheduler is using 'interval': 'epoch'")
    # lightning 2.6 uses a function of pytree that torch 2.13 deprecates.
    warnings.filterwarnings("ignore", ".*LeafSpec.* is deprecated", FutureWarning)
