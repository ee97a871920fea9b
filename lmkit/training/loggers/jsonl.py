"""The logger that writes metrics.jsonl."""

import time
from argparse import Namespace
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from lmkit.run.jsonl import JsonLines


class JsonlLogger(Logger):
    """Writes `metrics.jsonl`: rows of step, epoch, tokens, seconds and the logged values.

    step: updates done; tokens: training targets seen; seconds: time in training, including before
    a resume. Values that are not finite become null.
    """

    def __init__(self, save_dir: str | Path, version: str = "") -> None:
        super().__init__()
        self._save_dir = str(save_dir)
        self._version = version
        self._lines = JsonLines(Path(save_dir) / "metrics.jsonl")
        self._trainer: Trainer | None = None
        self._seconds = 0.0
        self._started = time.perf_counter()
        self._last: tuple[Mapping[str, Any], dict[str, Any]] | None = None

    @property
    def name(self) -> str:
        return "jsonl"

    @property
    def version(self) -> str:
        return self._version

    @property
    def save_dir(self) -> str:
        return self._save_dir

    def follow(self, trainer: Trainer) -> None:
        """Use step, epoch and tokens of `trainer`, which is about to fit, and start the clock."""
        self._trainer = trainer
        self._started = time.perf_counter()

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        self._lines.append(self.row(metrics, step))

    def row(self, metrics: Mapping[str, Any], step: int | None = None) -> dict[str, Any]:
        """The row of these metrics; every logger that passes the same mapping gets the same row."""
        if self._last is None or self._last[0] is not metrics:
            row: dict[str, Any] = {"step": step, "epoch": None, "tokens": None}
            if self._trainer is not None:
                # Lightning's own `step` counts from 0 and differs from stage to stage.
                row = position(self._trainer)
            row["seconds"] = round(self.seconds, 3)
            self._last = metrics, row | {key: metrics[key] for key in metrics if key != "epoch"}
        return self._last[1]

    def rows(self) -> Iterator[dict[str, Any]]:
        """The rows written so far; in a resumed run, those up to its checkpoint."""
        return self._lines.rows()

    @property
    def seconds(self) -> float:
        """Wall time in training so far, including before a resume."""
        return self._seconds + time.perf_counter() - self._started

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *_: Any, **__: Any) -> None:
        """Does nothing: config.yaml has them."""

    def state_dict(self) -> dict[str, Any]:
        """How long the file is, in bytes, and the seconds of the run."""
        self._lines.sync()
        return {"length": self._lines.length, "seconds": self.seconds}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Cut the file back to what it was then, and go on."""
        self._lines.resume(state_dict["length"], writes=is_first())
        self._seconds = state_dict["seconds"]
        self._started = time.perf_counter()


def is_first() -> bool:
    """Whether this process is the first of its run, which alone writes."""
    return not rank_zero_only.rank  # type: ignore[attr-defined]


def position(trainer: Trainer) -> dict[str, Any]:
    """How far training is: updates done, epoch from 0, training tokens seen."""
    return {
        "step": trainer.global_step,
        "epoch": trainer.current_epoch,
        "tokens": getattr(trainer.lightning_module, "tokens_seen", None),
    }
