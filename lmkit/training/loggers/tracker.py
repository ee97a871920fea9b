"""Trackers: they give a Lightning logger each row of metrics.jsonl once, even if a run is killed.

A run that resumes logs again the rows that it logged after its last checkpoint before it was
killed. A tracker knows the last row that its logger has, where possible from the logger's own
files, and leaves out all rows up to it. Rows of metrics.jsonl that the logger has lost, such as
those in memory at a kill, are given to it again.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger, Logger

from lmkit.system.files import strict_json, write_atomically
from lmkit.system.regular_file import DamagedError, read_json
from lmkit.training.callbacks import Samples
from lmkit.training.loggers.jsonl import JsonlLogger

log = logging.getLogger(__name__)

# Identifies a row: its step, and its number among the rows of that step, from 1.
Mark = tuple[int, int]
NOTHING: Mark = (-1, 0)


@dataclass
class Rows:
    """Counts rows as they come, and tells which are new to a logger that has them up to `known`."""

    known: Mark = NOTHING
    last: Mark = NOTHING

    @property
    def reached(self) -> Mark:
        return max(self.known, self.last)

    def is_new(self, row: Mapping[str, Any]) -> bool:
        step = int(row["step"] or 0)
        self.last = (step, self.last[1] + 1 if step == self.last[0] else 1)
        return self.last > self.known


@dataclass
class Account:
    """What the loggers of a run need beside its rows.

    config: the run's config, redacted, with the number of parameters, hashes and commit.
    step: of the checkpoint from which the run resumes; None for a run that starts.
    """

    directory: Path
    step: int | None
    metrics: JsonlLogger
    samples: Samples | None = None
    config: dict[str, Any] = field(default_factory=dict)


class Tracker:
    """Stands between Lightning and one logger, whose errors become a warning and never end the run.

    Calls of Lightning to the logger come here first: the logger gets the rows of metrics.jsonl with
    their step, and is finalised once, at the end of the run rather than of each of its stages.
    A subclass adds what a service has beyond Lightning's common methods.
    """

    def __init__(self, logger: Logger, account: Account, key: str = "") -> None:
        self.logger = logger
        self.account = account
        self.begun = False
        self.failed = False
        self.metrics, self.samples = Rows(), Rows()
        self._key = key
        for name in ("log_hyperparams", "log_graph"):
            setattr(logger, name, self._tolerating(getattr(logger, name)))
        setattr(logger, "save", self._tolerating(self._flush))  # noqa: B010
        setattr(logger, "log_metrics", self._tolerating(self._log_metrics))  # noqa: B010
        setattr(logger, "finalize", lambda status: None)  # noqa: B010
        self.begin = self._tolerating(self._begin)
        self.log_sample = self._tolerating(self._log_sample)
        self.flush = self._tolerating(self._flush)

    # ---- methods that a subclass may override for its service

    def known(self) -> tuple[Mark, Mark]:
        """The last row and the last sample that the logger has from before this resume."""
        noted = self._notes().get(self._key, {})
        return tuple(noted.get("metrics", NOTHING)), tuple(noted.get("samples", NOTHING))

    def configure(self, config: dict[str, Any]) -> None:
        """Log the config, once: MLflow refuses another value of a key that it has."""
        if self._key not in self._notes():
            self.logger.log_hyperparams(config)

    def send(self, values: dict[str, Any], step: int) -> None:
        """Log one row."""
        type(self.logger).log_metrics(self.logger, values, step)

    def send_sample(self, row: Mapping[str, Any]) -> None:
        """Does nothing: Lightning's loggers have no common method for texts."""

    def note(self) -> None:
        """Write down how far the logger is, and its name of the run."""
        here = {"metrics": self.metrics.reached, "samples": self.samples.reached}
        every = self._notes() | {self._key: here | {"version": str(self.logger.version)}}
        write_atomically(self.account.directory / NOTES, strict_json(every, indent=2).encode())

    def conclude(self, summary: Mapping[str, float], exit_code: int) -> None:
        """Log the run's best values, and that it has ended."""
        best = {key: value for key, value in summary.items() if key.startswith("best/")}
        if best:
            self.send(best, max(self.metrics.last[0], 0))
        type(self.logger).finalize(self.logger, "failed" if exit_code else "success")

    # ----

    def finish(self, summary: Mapping[str, float], exit_code: int) -> None:
        """End the logger's run, even if the logger has failed."""
        if not self.begun:
            return
        try:
            self.conclude({} if self.failed else summary, exit_code)
        except Exception as error:
            if not self.failed:
                self._give_up(error)

    def _begin(self) -> None:
        self.begun = True
        self.metrics.known, self.samples.known = self.known()
        self.configure(self.account.config)
        for row in self.account.metrics.rows():
            self._pass_on(row)
        for row in self.account.samples.rows() if self.account.samples else ():
            self._log_sample(row)

    def _log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        self._pass_on(self.account.metrics.row(metrics, step))

    def _pass_on(self, row: Mapping[str, Any]) -> None:
        if not self.metrics.is_new(row):
            return
        absent = [key for key in ("epoch", "tokens") if row[key] is None]
        values = {
            key: math.nan if row[key] is None else row[key]  # JSON has null for NaN
            for key in row
            if key != "step" and key not in absent
        }
        self.send(values, int(row["step"] or 0))
        self.note()

    def _log_sample(self, row: Mapping[str, Any]) -> None:
        if self.samples.is_new(row):
            self.send_sample(row)
            self.note()

    def _flush(self) -> None:
        if self.begun:  # Lightning calls this also before it has restored a checkpoint
            type(self.logger).save(self.logger)

    def _notes(self) -> dict[str, Any]:
        return notes(self.account.directory)

    def _tolerating(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if self.failed:
                return None
            try:
                return method(*args, **kwargs)
            except Exception as error:  # a service or its library may raise anything
                return self._give_up(error)

        return call

    def _give_up(self, error: Exception) -> None:
        self.failed = True
        what = f"{type(self.logger).__name__} failed ({type(error).__name__}: {error})"
        log.warning("%s: it gets no more; metrics.jsonl goes on", what)


class CSVTracker(Tracker):
    """The tracker of Lightning's CSV file. Each process begins the file anew with all rows."""

    logger: CSVLogger

    def known(self) -> tuple[Mark, Mark]:
        for name in ("metrics.csv", "hparams.yaml"):
            (Path(self.logger.log_dir) / name).unlink(missing_ok=True)
        return NOTHING, NOTHING

    def send(self, values: dict[str, Any], step: int) -> None:
        super().send(values, step)
        CSVLogger.save(self.logger)

    def note(self) -> None:
        """Does nothing: the file always has all rows."""

    def conclude(self, summary: Mapping[str, float], exit_code: int) -> None:
        super().conclude({}, exit_code)  # without best values: only rows, as in metrics.jsonl


class Tracking(Callback):
    """Begins the trackers of a run once it is known where the run resumes, and flushes them with
    every checkpoint. Must come before the checkpoint's callback, which relies on the flush."""

    def __init__(self, account: Account, trackers: Iterable[Tracker]) -> None:
        self.account = account
        self.trackers = list(trackers)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for tracker in self.trackers:
            tracker.begin()

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        for tracker in self.trackers:
            tracker.flush()


NOTES = "loggers.json"


def notes(directory: Path) -> dict[str, Any]:
    """The notes of a run's trackers, by the logger's key; damaged ones are left out."""
    try:
        read = read_json(directory / NOTES)
    except FileNotFoundError:
        return {}
    except DamagedError as error:
        log.warning("%s: the loggers begin anew", error)
        return {}
    return {key: noted for key, noted in read.items() if isinstance(noted, dict)}
