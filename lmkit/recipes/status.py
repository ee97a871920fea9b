"""The status of every recipe on this machine, from the runs in the outputs directory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from lmkit.errors import UserError
from lmkit.recipes.estimate import seconds, speed
from lmkit.recipes.report import FILE
from lmkit.run import Run
from lmkit.run.checkpoints import newest_manifest, num_epochs_done

LONGEST = 7 * 24 * 3600.0  # seconds; what would take longer here is out of reach
ORDER = ("pass", "fail", "other text", "other settings", "cut short")


class Status(NamedTuple):
    """How far a recipe has come: in a word or two, the run, the record of its reproduction, the
    estimated seconds of a training here, and the epochs behind a training that has begun."""

    word: str
    run: str | None = None
    record: Mapping[str, Any] | None = None
    seconds: float | None = None
    epochs: str | None = None


def statuses(recipes: Mapping[str, Mapping[str, Any]], outputs: str | Path) -> dict[str, Status]:
    """The status of each recipe, given by its config; a run is a recipe's by its name."""
    runs: dict[str, list[Run]] = {}
    for run in Run.all(outputs):
        runs.setdefault(run.name, []).append(run)
    return {
        name: _status(config, runs.get(str(config["name"]), [])) for name, config in recipes.items()
    }


def _status(config: Mapping[str, Any], runs: list[Run]) -> Status:
    records = sorted(_records(runs), key=lambda each: ORDER.index(each[1]["verdict"]))
    if records:
        run, record = records[0]
        word = {"pass": "reproduced", "fail": "failed"}.get(record["verdict"], record["verdict"])
        return Status(word, f"{run.name}/{run.id}", record)
    if runs:
        run = runs[-1]
        return Status("begun", f"{run.name}/{run.id}", epochs=_epochs(config, run))
    estimated = seconds(config, speed())
    far = estimated is not None and estimated > LONGEST
    return Status("out of reach here" if far else "not yet run", seconds=estimated)


def _epochs(config: Mapping[str, Any], run: Run) -> str | None:
    """How far the last checkpoint of a run has come, as "18 of 40 epochs"; None if that is unknown,
    or a recipe's training is not measured in epochs."""
    _, manifest = newest_manifest(run.path / "checkpoints")
    num_epochs = config["trainer"].get("max_epochs") or -1
    if not manifest or num_epochs < 0:
        return None
    return f"{num_epochs_done(manifest)} of {num_epochs} epochs"


def _records(runs: list[Run]) -> Iterator[tuple[Run, dict[str, Any]]]:
    """The newest runs' records first."""
    for run in reversed(runs):
        try:
            record = run.read(FILE)
        except UserError:  # damaged: as if there were none
            continue
        if record.get("verdict") in ORDER:
            yield run, record
