"""What one process does of a run: fit, test the best weights, write the summary."""

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
from lmkit.training.callbacks import StopOnSignal
from lmkit.training.callbacks.progress import Progress
from lmkit.training.components import make_callbacks, make_task, make_tracking, make_trainer
from lmkit.training.continuation import Continuation
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

    data: that of the config, where this process has opened it already. pace: what watches its
    speed.
    """
    with restored(), StopSignals() as signals, computing(config):
        data = data or make_data(config)
        task = make_task(config, data)
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
        with concluding(trainer, tracking) as summary:
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


@contextmanager
def computing(config: Mapping[str, Any]) -> Iterator[None]:
    """Kernels, threads, random numbers and the order of sums as a config has them."""
    with kernels.use(config["kernels"]), threads.use(config["threads"]):
        quiet()
        if config["trainer"]["accelerator"] == "cuda":  # sums in one order, for the same bits again
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True, warn_only=True)
        pl.seed_everything(config["seed"], verbose=False)
        yield


def _describe(
    run: Run, config: Mapping[str, Any], task: Task, data: DataModule, tracking: Tracking
) -> None:
    """Write `data.json`, or add to it what has changed, and the tokenizer, which travels along;
    tell the loggers what the run is about."""
    data.tokenizer.save(run.path)
    run.add("data.json", data.prepared.describe())
    tracking.account.config = _about(run, config, task)


def _about(run: Run, config: Mapping[str, Any], task: Task) -> dict[str, Any]:
    """The config of a run for its loggers, as config.yaml has it, and what identifies it."""
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
