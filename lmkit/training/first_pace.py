"""The threads that a training begins with: set, chosen by a trial, or those of before a resume."""

from __future__ import annotations

import math
import sys
from typing import Any

from lmkit.overrides import names
from lmkit.run import Run
from lmkit.run.checkpoints import newest_manifest
from lmkit.run.history import commanded
from lmkit.system.threads import Threads
from lmkit.system.wording import counted
from lmkit.training.estimate import estimate, lasting
from lmkit.training.pace import NAME as CHOICES
from lmkit.training.pace import Pace
from lmkit.windows import DataModule

TRIAL_SECONDS = 0.5  # of steps with the chosen number of threads


def first_pace(run: Run, config: dict[str, Any], overrides: list[str], data: DataModule) -> Pace:
    """The threads of a training, chosen by a trial unless they are set; prints how long it takes.

    A run that resumes keeps a number that was set, and one on which its results depend.
    """
    before = run.config().get("threads")  # None for a new run
    now_set = names(overrides, "threads")
    is_set = now_set or (config["threads"] is not None and not (run.path / CHOICES).exists())
    _, manifest = newest_manifest(run.path / "checkpoints")
    if is_set and manifest:
        _say_what_set(run, config["threads"], overrides)
    wanted = config["threads"] if is_set else None
    config = {**config, "threads": wanted}
    measured = estimate(config, data, seconds=TRIAL_SECONDS, unless_short=True)
    chosen, rate = measured.threads, measured.tokens_per_second
    what, seconds = "an epoch", measured.epoch_seconds
    if 0 < measured.steps < math.inf:
        what = "what is left of the training" if manifest else "the training"
        seconds = (1 - manifest.get("step", 0) / measured.steps) * measured.seconds
    if before is not None and not manifest:
        print(f"{run.id} has no checkpoint yet: it begins again", file=sys.stderr)
    if seconds > 0:
        print(
            f"{what} will take about {lasting(seconds)} here: {measured.tokens:,} tokens an epoch, "
            f"{chosen}",
            file=sys.stderr,
        )
    number, fixed = chosen.number, is_set or not measured.any_threads
    if not is_set and fixed and before not in (None, number):
        message = f"{counted(before, 'thread')} as before, so that the run goes on bit for bit"
        if (slow := chosen.rates.get(before, 0.0)) and slow < rate:
            message += f"; threads={number} computed {rate / slow:.1f} times as fast here now"
        print(message, file=sys.stderr)
        number, rate = before, slow
    return Pace(Threads(chosen.most, number, rate, fixed=fixed), run.path, is_set=is_set)


def _say_what_set(run: Run, threads: int | None, overrides: list[str]) -> None:
    """Tell the user where no command has set the number of threads: a config file may have, or the
    file of chosen numbers is lost."""
    record: Any = run.read("overrides.yaml")
    if threads is not None and not names([*overrides, *commanded(record)], "threads"):
        print(
            f"{run.id} has no {CHOICES}, which would say that its threads were chosen: it keeps "
            f"{counted(threads, 'thread')}, as set; with threads=null they are chosen anew",
            file=sys.stderr,
        )
