"""The trials of a sweep in optuna's database: what to try next, and what came of the others."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import optuna
from optuna.pruners import BasePruner, MedianPruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, Trial, TrialState

from lmkit.search import Dimension

__all__ = ["OUTCOMES", "FrozenTrial", "Pruner", "Sampler", "Study", "Trial"]

Sampler = Literal["tpe", "random", "grid"]
Pruner = Literal["none", "median", "halving"]

# What a trial came to, in lmkit's words.
OUTCOMES = {
    TrialState.COMPLETE: "finished",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "waiting",
}


class Study:
    """Trials numbered from 0, of which those that a killed sweep left go on first.

    A draw depends on the seed, the number of the trial and what the others came to, not on how
    often the sweep was started again. For `grid`, `points` are all there are, in their order.
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
        self._dimensions = dimensions
        self._sampler = sampler
        self._seed = seed
        # Where trials run side by side it keeps away from those that are running.
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        self._study = optuna.create_study(
            storage=f"sqlite:///{file}",
            study_name="sweep",
            load_if_exists=True,
            pruner=_pruner(pruner, *warmup),
        )
        have = len(self.trials())
        for point in points[have:]:
            self._study.enqueue_trial(dict(point))
        self._left = [t for t in self.trials() if t.state == TrialState.RUNNING]

    def trials(self) -> list[FrozenTrial]:
        """All of them, by number."""
        return self._study.get_trials(deepcopy=False)

    def num_started(self) -> int:
        """How many trials there are that have been started, ever."""
        return sum(trial.state != TrialState.WAITING for trial in self.trials())

    def unfinished(self) -> Trial | None:
        """A trial that an earlier process of the sweep started and did not see end."""
        if not self._left:
            return None
        return self._draw(Trial(self._study, self._left.pop(0)._trial_id))

    def ask(self) -> Trial:
        """A new trial, its values drawn."""
        # The generator of a process that goes on would draw again what the first one drew.
        entropy = np.random.SeedSequence([self._seed, self.num_started()])
        self._study.sampler = _sampler(self._sampler, int(entropy.generate_state(1)[0]))
        return self._draw(self._study.ask())

    def _draw(self, trial: Trial) -> Trial:
        for d in self._dimensions:
            if d.values:
                trial.suggest_categorical(d.key, d.values)
            elif isinstance(d.low, int):
                trial.suggest_int(d.key, d.low, int(d.high), log=d.log)
            else:
                trial.suggest_float(d.key, d.low, d.high, log=d.log)
        return trial

    def tell(self, trial: Trial, outcome: str, value: float | None = None, why: str = "") -> None:
        """What a trial came to: finished with a value, pruned or failed, and why."""
        trial.set_user_attr("why", why)
        state = next(state for state, name in OUTCOMES.items() if name == outcome)
        self._study.tell(trial, value if outcome == "finished" else None, state)

    def prunes(self, trial: Trial, values: Sequence[float]) -> bool:
        """Whether a trial with these values, one a validation so far, is to be stopped."""
        known = self.trials()[trial.number].intermediate_values
        for step, value in enumerate(values, start=1):
            if step not in known:
                trial.report(value if math.isfinite(value) else math.inf, step)
        return bool(values) and trial.should_prune()


def _sampler(name: Sampler, seed: int) -> BaseSampler:
    if name == "tpe":
        return TPESampler(seed=seed, constant_liar=True)
    return RandomSampler(seed=seed)  # a grid's values are given


def _pruner(name: Pruner, num_trials: int, num_validations: int) -> BasePruner:
    if name == "median":
        return MedianPruner(num_trials, num_validations)
    if name == "halving":  # ASHA (Li et al. 2020)
        return SuccessiveHalvingPruner(min_resource=max(num_validations, 1), reduction_factor=3)
    return NopPruner()
