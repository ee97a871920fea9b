"""The trials of a sweep in optuna's database: their outcomes, and what to try next."""

from __future__ import annotations

import copy
import errno
import math
import os
import random
import sqlite3
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import optuna
from optuna.exceptions import StorageInternalError
from optuna.pruners import BasePruner, MedianPruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy import URL
from sqlalchemy.exc import SQLAlchemyError

from lmkit.errors import MachineError, UserError, as_user_error, causes
from lmkit.sweep.search import Dimension

__all__ = ["OUTCOMES", "FrozenTrial", "Pruner", "Sampler", "Study", "Trial", "interrupted"]

Sampler = Literal["tpe", "random", "grid"]
Pruner = Literal["none", "median", "halving"]

UNWRITABLE = (
    *(sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_IOERR),
    *(sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PERM),
)

# The outcome of a trial, in lmkit's words.
OUTCOMES = {
    TrialState.COMPLETE: "finished",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "waiting",
}


DRAWS = 20  # of a sampler, before an untried combination is drawn uniformly


class Study:
    """The trials of a sweep, numbered from 0; those that a killed sweep left unfinished come first.

    A draw depends on the seed, the number of the trial and the outcomes of others, not on how often
    the sweep was resumed. No combination of values is drawn twice. For `grid`, `points` are all
    combinations in order. Raises UserError if the file is damaged.
    """

    def __init__(
        self,
        file: Path,
        dimensions: Sequence[Dimension],
        *,
        sampler: Sampler,
        pruner: Pruner,
        warmup: tuple[int, int],
        seed: int,
        points: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        """warmup: trials and validations of a trial before any is pruned."""
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.file = file
        self._dimensions = dimensions
        self._sampler = sampler
        self._pruner = _pruner(pruner, *warmup)
        self._seed = seed
        # The warning is about `constant_liar`: with it, draws keep away from running trials.
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        with _database(file):
            self._open()
            for point in points[len(self.trials()) :]:
                self._study.enqueue_trial(dict(point))

    def _open(self) -> None:
        self._storage, self._study = _open(self.file, self._pruner)
        self._left = [t for t in self.trials() if t.state == TrialState.RUNNING]

    def trials(self) -> list[FrozenTrial]:
        """All trials, by number."""
        with _database(self.file):
            return self._study.get_trials(deepcopy=False)

    def num_started(self) -> int:
        """The number of trials that were ever started."""
        return sum(trial.state != TrialState.WAITING for trial in self.trials())

    def num_ended(self) -> int:
        """The number of trials that have finished, were pruned or failed."""
        return sum(trial.state.is_finished() for trial in self.trials())

    def unfinished(self) -> Trial | None:
        """A trial that an earlier process of the sweep left unfinished; None if there is none."""
        if not self._left:
            return None
        with _database(self.file):
            trial = Trial(self._study, self._left.pop(0)._trial_id)
            trial.set_user_attr("why", "")
            return self._suggest(trial)

    def ask(self) -> Trial | None:
        """A new trial with drawn values; None if all combinations have been tried."""
        with _database(self.file):
            if not any(trial.state == TrialState.WAITING for trial in self.trials()):
                values = self._draw()
                if values is None:
                    return None
                self._study.enqueue_trial(values)  # so that they survive a kill at any moment
            return self._suggest(self._study.ask())

    def size(self) -> float:
        """The number of combinations, which may be infinite."""
        return math.prod(dimension.size for dimension in self._dimensions)

    def _draw(self) -> dict[str, Any] | None:
        """Values that no trial has had, drawn in a copy of the study."""
        tried = {tuple(trial.params.items()) for trial in self.trials()}
        if len(tried) >= self.size():
            return None
        # A new seed per draw: after a resume, one generator would repeat the first draws.
        entropy = np.random.SeedSequence([self._seed, self.num_started()])
        seed = int(entropy.generate_state(1)[0])
        drawing = optuna.create_study(sampler=_sampler(self._sampler, seed))
        drawing.add_trials([trial for trial in self.trials() if not interrupted(trial)])
        for _ in range(DRAWS):
            trial = self._suggest(drawing.ask())
            if tuple(trial.params.items()) not in tried:
                return dict(trial.params)
            drawing.tell(trial, state=TrialState.FAIL)
        return self._untried(tried, seed)

    def _untried(self, tried: set[tuple[tuple[str, Any], ...]], seed: int) -> dict[str, Any]:
        """A combination that no trial has had, drawn uniformly."""
        numbers = sorted(self._number(dict(values)) for values in tried)
        index = random.Random(seed).randrange(int(self.size()) - len(numbers))
        for number in numbers:
            index += number <= index
        values = {}
        for d in reversed(self._dimensions):
            index, digit = divmod(index, int(d.size))
            values[d.key] = d.values[digit] if d.values else int(d.low) + digit
        return values

    def _number(self, values: Mapping[str, Any]) -> int:
        """The index of a combination in the order of the grid."""
        number = 0
        for d in self._dimensions:
            digit = d.values.index(values[d.key]) if d.values else values[d.key] - int(d.low)
            number = number * int(d.size) + digit
        return number

    def _suggest(self, trial: Trial) -> Trial:
        for d in self._dimensions:
            if d.values:
                trial.suggest_categorical(d.key, d.values)
            elif isinstance(d.low, int):
                trial.suggest_int(d.key, d.low, int(d.high), log=d.log)
            else:
                trial.suggest_float(d.key, d.low, d.high, log=d.log)
        return trial

    def interrupt(self, trial: Trial, why: str) -> None:
        """Note that the machine has ended a trial, which resumes when the sweep does."""
        with _database(self.file):
            trial.set_user_attr("why", why)

    def reopen(self, numbers: Sequence[int]) -> None:
        """Make trials that had ended unfinished again.

        optuna never changes the outcome of a trial, so this is done in a copy of the file, which
        then replaces it.
        """
        if not numbers:
            return
        trials = copy.deepcopy(self.trials())
        for trial in (trials[number] for number in numbers):
            trial.state, trial.values, trial.datetime_complete = TrialState.RUNNING, None, None
        new = self.file.with_name(f"{self.file.name}.new")
        new.unlink(missing_ok=True)
        with _database(self.file):
            storage, study = _open(new, self._pruner)
            study.add_trials(trials)
            for each in (storage, self._storage):
                each.remove_session()
                each.engine.dispose()
            new.replace(self.file)
            self._open()

    def tell(self, trial: Trial, outcome: str, value: float | None = None, why: str = "") -> None:
        """Record the outcome of a trial: finished with a value, pruned or failed, and why."""
        state = next(state for state, name in OUTCOMES.items() if name == outcome)
        with _database(self.file):
            trial.set_user_attr("why", why)
            self._study.tell(trial, value if outcome == "finished" else None, state)

    def prunes(self, trial: Trial, values: Sequence[float]) -> bool:
        """Whether to stop a trial with these values, one per validation so far."""
        known = self.trials()[trial.number].intermediate_values
        with _database(self.file):
            for step, value in enumerate(values, start=1):
                if step not in known:
                    trial.report(value if math.isfinite(value) else math.inf, step)
            return bool(values) and trial.should_prune()


def interrupted(trial: FrozenTrial) -> bool:
    """Whether the machine has ended a trial, which then resumes when the sweep does."""
    return trial.state == TrialState.RUNNING and bool(trial.user_attrs.get("why"))


def _open(file: Path, pruner: BasePruner) -> tuple[RDBStorage, optuna.Study]:
    """The study in a database, which is created if it does not exist."""
    storage = RDBStorage(URL.create("sqlite", database=str(file)).render_as_string())
    study = optuna.create_study(
        storage=storage, study_name="sweep", load_if_exists=True, pruner=pruner
    )
    return storage, study


@contextmanager
def _database(file: Path) -> Iterator[None]:
    """Turn errors of SQLite inside the block into a UserError about the file."""
    try:
        yield
    except (StorageInternalError, SQLAlchemyError, sqlite3.Error) as error:
        raise _unusable(file, error) from error


def _unusable(file: Path, error: BaseException) -> UserError:
    cause = next((each for each in causes(error) if isinstance(each, sqlite3.Error)), None)
    code = getattr(cause, "sqlite_errorcode", None)
    if code == sqlite3.SQLITE_FULL:
        full = as_user_error(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file)))
        assert full is not None
        return full
    said = str(cause or error).partition("\n")[0]
    if code is not None and code & 0xFF in UNWRITABLE:
        return MachineError(f"cannot write {file}: {said}; make it and its directory writable")
    return UserError(
        f"{file} is damaged ({said}): put back a copy of it, or begin another sweep with another "
        "run_id; the runs of this one stay"
    )


def _sampler(name: Sampler, seed: int) -> BaseSampler:
    if name == "tpe":
        return TPESampler(seed=seed, constant_liar=True)
    return RandomSampler(seed=seed)  # not used for a grid


def _pruner(name: Pruner, num_trials: int, num_validations: int) -> BasePruner:
    if name == "median":
        return MedianPruner(num_trials, num_validations)
    if name == "halving":  # ASHA (Li et al. 2020)
        return SuccessiveHalvingPruner(min_resource=max(num_validations, 1), reduction_factor=3)
    return NopPruner()
