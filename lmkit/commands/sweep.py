"""`lmkit sweep`: trainings over keys with several values, each a run like any other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lmkit.config.mistakes import report
from lmkit.errors import UserError
from lmkit.run import Directory, mint_id
from lmkit.sweep.driver import Metric, Sweep
from lmkit.sweep.preflight import check_same, gpu_slots, impossible, prepare_data, read_values
from lmkit.sweep.search import Search
from lmkit.sweep.study import Pruner, Sampler, Study
from lmkit.system.processes import launched

NUM_TRIALS = 20


def sweep(
    config: dict[str, Any],
    search: Search,
    *,
    sampler: Sampler = "tpe",
    num_trials: int | None = None,
    parallel: int = 1,
    metric: Metric = "val/nll",
    pruner: Pruner = "none",
    num_startup_trials: int = 5,
    num_warmup_validations: int = 1,
) -> dict[str, Any]:
    """Train with many values of the keys that have several, and show what came of it.

        lmkit sweep optimizer.lr='tag(log,interval(1e-4,1e-2))' model.dropout=0,0.2,0.4
        lmkit sweep sweep=lstm num_trials=40 pruner=median
        lmkit sweep seed=1,2,3 sampler=grid

    Each trial is a run, <id>-000 and so on, that never sees the test split. With the run_id of a
    sweep that was stopped or killed, goes on to num_trials in all. No combination of values is
    tried twice: a sweep over lists ends when it has tried them all.
    sampler: tpe learns from the trials so far, random does not, grid takes all combinations.
    num_trials: how many ever start, failed ones too; null: 20, or all of a grid.
    parallel: trials at a time; they share the cores, or have GPUs of their own.
    metric: of the validations, the lower the better.
    pruner: median or halving end a trial whose validations are worse than those of others.
    num_startup_trials: with pruner=median, so many trials come before any is ended.
    num_warmup_validations: so many validations of a trial come before it is ended.
    """
    if launched():
        raise UserError("lmkit sweep starts its trials itself: call it as one process")
    shown, mistakes = read_values(search, config)
    search = search.distinct(shown)
    points = search.grid() if sampler == "grid" else []
    total = (len(points) or NUM_TRIALS) if num_trials is None else num_trials
    numbers = {
        **{"num_trials": (total, 1), "parallel": (parallel, 1)},
        "num_startup_trials": (num_startup_trials, 0),
        "num_warmup_validations": (num_warmup_validations, 0),
    }
    low = [f"{k}={n}: must be at least {least}" for k, (n, least) in numbers.items() if n < least]
    mistakes = [*low, *impossible(search, config, metric, total, points), *mistakes]
    if mistakes:
        raise UserError(report(list(dict.fromkeys(mistakes))))
    slots = gpu_slots(config, parallel)
    settings = {
        "search": [dimension.source for dimension in search.dimensions],
        "arguments": [a for a in search.fixed if not a.startswith(("outputs=", "run_id="))],
        **{"sampler": sampler, "metric": metric, "pruner": pruner, "seed": config["seed"]},
        "num_startup_trials": num_startup_trials,
        "num_warmup_validations": num_warmup_validations,
    }
    prepare_data(config, metric)
    run_id = config["run_id"] or mint_id()
    directory = Directory(Path(config["outputs"]) / config["name"] / f"{run_id}-sweep")
    with directory.holding():
        check_same(directory, settings)
        study = Study(
            directory.path / "study.db",
            search.dimensions,
            sampler=sampler,
            pruner=pruner,
            warmup=(num_startup_trials, num_warmup_validations),
            seed=config["seed"],
            points=points,
        )
        return Sweep(directory, config, search, metric, study, shown).run(total, slots)
