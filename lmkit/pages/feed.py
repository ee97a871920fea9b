"""What the run directories say by now, in pieces, for a page that follows them.

Nothing is kept between two questions: the page says how far it has read, and hears the rest. What
is damaged in a run is told as one of its `problems`, and spoils that run alone.
"""

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any
from zlib import crc32

import yaml

from lmkit.run import Run, run_directories
from lmkit.run.jsonl import NO_ROWS, read_rows
from lmkit.system.files import strict_json
from lmkit.system.regular_file import (
    MAX_SWEEP,
    DamagedError,
    opened,
    parse_row,
    read_json,
    read_yaml,
)

log = logging.getLogger(__name__)

NUM_ANSWERED = 16 << 20  # bytes of all that is new in one answer, but for the last of it
NUM_LAST = 1 << 16  # bytes at its end, to look for the last row in
REACHED = ("step", "epoch", "tokens", "seconds")
YAML = getattr(yaml, "CBaseLoader", yaml.BaseLoader)  # every value as it is written
LINES = ("metrics", "samples")


class Outputs:
    """All runs under a directory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._warned: set[Path] = set()

    def changes(self, known: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
        """Every run by `<name>/<id>`, each with what is new to one who has `known` of it.

        known: of a run, `stamp`, and for each file to be read on, `metrics` or `samples`, the
        place reached. A run that is not `known` is told about, without rows. `last`: how far the
        run has come, whether its rows are asked for or not. `more`: an answer has its bounds, and
        there is something else to ask for at once.
        """
        found: dict[str, dict[str, Any]] = {}
        room = NUM_ANSWERED
        for path in run_directories(self.path):
            run = Run(path)
            key = f"{run.name}/{run.id}".encode("utf-8", "backslashreplace").decode()
            had = known.get(key, {})
            about, stamp, size = _about(path, _states(path), run.held())
            new = found[key] = {"last": last_reached(path / "metrics.jsonl")}
            if stamp != had.get("stamp"):
                if room > 0:
                    new |= {"stamp": stamp, "about": about}
                    room -= size
                else:
                    new["more"] = True
            for name in LINES:
                if (place := had.get(name)) and room <= 0:
                    new["more"] = True
                elif place:
                    new[name] = self._read_on(path / f"{name}.jsonl", place)
                    room -= max(0, new[name]["place"][0] - place[0])
        return found

    def _read_on(self, path: Path, place: Sequence[int]) -> dict[str, Any]:
        try:
            piece = read_rows(path, place)
        except DamagedError:
            return {**NO_ROWS, "afresh": place[0] > 0}
        if piece["num_damaged"] and path not in self._warned:
            self._warned.add(path)
            log.warning("%s: %d damaged lines are left out", path, piece["num_damaged"])
        return piece


def last_reached(path: Path) -> dict[str, float]:
    """Step, epoch, tokens and seconds of the last whole row of the training; empty where there is
    none."""
    return _reached(path, _state(path))


@lru_cache(maxsize=10_000)
def _reached(path: Path, state: Sequence[int]) -> dict[str, float]:
    try:
        with opened(path) as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - NUM_LAST))
            lines = file.read(NUM_LAST).split(b"\n")
    except (FileNotFoundError, DamagedError):
        return {}
    for line in reversed(lines[:-1]):  # the last is empty, or half written
        row = parse_row(line)
        # A test comes after the last epoch, or after none where a run that has ended is resumed.
        if row is not None and not any(key.startswith("test/") for key in row):
            return {key: row[key] for key in REACHED if type(row.get(key)) in (int, float)}
    return {}


def _state(path: Path) -> tuple[int, ...]:
    """What changes whenever a file may have another content, or be another to read."""
    try:
        at = path.stat()
    except OSError as error:
        return (error.errno or 0,)
    return at.st_ino, at.st_ctime_ns, at.st_size


@lru_cache(maxsize=10_000)
def _about(
    path: Path, states: Sequence[Sequence[int]], held: bool
) -> tuple[dict[str, Any], int, int]:
    """Status, config and summary, and of what cannot be read what is wrong with it; a checksum of
    all that, and its size. states, held: of which it is a function."""
    run = Run(path)
    problems: list[str] = []
    about: dict[str, Any] = {"path": str(path), "problems": problems}
    parts: dict[str, Callable[[], Any]] = {
        "status": run.status,
        "config": lambda: read_yaml(path / "config.yaml", YAML),
        "summary": lambda: run.read("summary.json"),
        "sweep": lambda: _trial(run),
        **{name: partial(_look_at, path / f"{name}.jsonl") for name in LINES},
    }
    for name, read in parts.items():
        try:
            if (value := read()) is not None:
                about[name] = value
        except FileNotFoundError:
            if name == "config":
                problems.append(f"{path} has lost its config.yaml")
        except DamagedError as error:
            problems.append(str(error))
    text = strict_json(about).encode("utf-8", "replace")
    return about, crc32(text), len(text)


def _look_at(path: Path) -> None:
    with opened(path):
        pass


def _states(path: Path) -> tuple[tuple[int, ...], ...]:
    """Those of all files that `_about` reads; rows come and go without a word."""
    files = [path / name for name in ("status.json", "config.yaml", "summary.json")]
    rows = ((path / f"{name}.jsonl") for name in LINES)
    return (*map(_state, (*files, _sweep(path))), *map(_kind, rows))


def _kind(path: Path) -> tuple[int, ...]:
    try:
        at = path.stat()
    except OSError as error:
        return (error.errno or 0,)
    return at.st_ino, at.st_mode


def _sweep(path: Path) -> Path:
    """Where the sweep that a run is a trial of would tell of it."""
    return path.parent / f"{path.name.rpartition('-')[0]}-sweep" / "sweep.json"


def _trial(run: Run) -> Mapping[str, Any]:
    """What the sweep that a run is a trial of says of it, if it is one."""
    file = _sweep(run.path)
    if not os.path.lexists(file):
        return {}
    return _trials(file, _state(file)).get(f"{run.name}/{run.id}", {})


@lru_cache(maxsize=100)
def _trials(file: Path, state: Sequence[int]) -> Mapping[str, Mapping[str, Any]]:
    found = read_json(file, MAX_SWEEP)
    sweep = file.parent
    try:
        metric, trials = found["metric"], found["trials"]
        about = {"id": f"{sweep.parent.name}/{sweep.name}", "metric": str(metric)}
        return {trial["run"]: about | _checked(trial) for trial in trials}
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        what = f"is damaged: no trials as a sweep writes them ({error!r})"
        raise DamagedError(file, what) from error


def _checked(trial: Mapping[str, Any]) -> dict[str, Any]:
    """Outcome, value, values and validations of a trial; raises where they are something else."""
    parts = {name: trial[name] for name in ("outcome", "value", "values", "validations")}
    for number in (parts["value"], *parts["validations"]):
        if number is not None and not isinstance(number, int | float):
            raise ValueError(f"{number!r} is no number")
    return parts | {"outcome": str(parts["outcome"]), "values": dict(parts["values"].items())}
