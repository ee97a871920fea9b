"""The summary of a run: last validation, best validation, test, speed, time and memory."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import lightning.pytorch as pl
from torch import nn

from lmkit.errors import exit_code
from lmkit.inference.identity import check_own
from lmkit.metrics import perplexity
from lmkit.run import Run
from lmkit.run.checkpoints import evaluated_weights, load_checkpoint
from lmkit.system import hardware
from lmkit.training.callbacks import Checkpoint
from lmkit.training.loggers import JsonlLogger
from lmkit.training.loggers.tracker import Tracking
from lmkit.training.task import Task

log = logging.getLogger(__name__)


def num_parameters(task: nn.Module) -> int:
    """The number of parameters of model and head; a tied matrix counts once."""
    return sum(parameter.numel() for parameter in task.parameters())


@contextmanager
def concluding(trainer: pl.Trainer, tracking: Tracking) -> Iterator[dict[str, float]]:
    """Yields the summary of a run, to be filled in; its loggers get it however the run ends."""
    summary: dict[str, float] = {}
    code = 1
    try:
        yield summary
        code = 0
    except BaseException as error:
        summary |= best(trainer)
        code = exit_code(error)
        raise
    finally:
        for tracker in tracking.trackers:
            tracker.finish(summary, code)


def logged(trainer: pl.Trainer, stage: str) -> dict[str, float]:
    """The values last logged in a stage, `val/` or `test/`."""
    values = trainer.callback_metrics
    return {key: float(values[key]) for key in values if key.startswith(stage)}


def validated(trainer: pl.Trainer, metrics: JsonlLogger) -> dict[str, float]:
    """The last validation; of a run that had ended already, from metrics.jsonl."""
    rows = [row for row in metrics.rows() if "val/nll" in row]
    last = {key: value for row in rows[-1:] for key, value in row.items() if key[:4] == "val/"}
    return last | logged(trainer, "val/")


def take_best(run: Run, trainer: pl.Trainer, task: Task) -> dict[str, float]:
    """Load the weights of the best checkpoint into the task; returns its step and scores."""
    path = run.path / "checkpoints" / "best.ckpt"
    if trainer.fast_dev_run:  # type: ignore[attr-defined]
        return {}
    if not path.exists():
        if best(trainer):
            log.warning("%s is gone: the last weights take its place", path)
        return best(trainer)
    check_own(run, path)
    checkpoint = load_checkpoint(path)
    task.load_state_dict(evaluated_weights(checkpoint))
    return {"best/step": checkpoint["global_step"]} | best(trainer)


def best(trainer: pl.Trainer) -> dict[str, float]:
    """The scores of the best validation so far."""
    scores: dict[str, float] = {}
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, Checkpoint) and callback.best_score is not None:
            scores[f"best/{callback.monitor}"] = callback.best_score
            if callback.monitor == "val/nll":
                scores["best/val/perplexity"] = perplexity(callback.best_score)
    return scores


def effort(task: Task, seconds: float) -> dict[str, float]:
    """Speed and time of a run over all its resumes, this process's peak memory, and sizes."""
    return {
        "tokens_per_second": task.tokens_seen / max(task.values.seconds, 1e-9),
        "peak_memory_bytes": hardware.peak_memory(task.device),
        "num_parameters": num_parameters(task),
        "tokens": task.tokens_seen,
        "seconds": seconds,
    }
