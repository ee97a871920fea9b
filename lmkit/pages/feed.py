"""Reads what is new in run directories, for a page that follows them.

There is no state between two requests: the page says how far it has read, and gets the rest. Damage
in a run is reported as one of its `problems`, and does not affect other runs.
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

NUM_ANSWERED = 16 << 20  # bytes of new content after which an answer begins no other file
NUM_LAST = 1 << 16  # bytes at the end of a file that are searched for its last row
REACHED = ("step", "epoch", "tokens", "seconds")
YAML = getattr(yaml, "CBaseLoader", yaml.BaseLoader)  # keeps every value as it is written
LINES = ("metrics", "samples")


class Outputs:
    """All runs under a directory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._warned: set[Path] = set()

    def changes(self, known: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
        """Every run by `<name>/<id>`, each with what is new to a page that has `known` of it.

        known: of a run, its `stamp`, and for each file that the page reads, `metrics` or `samples`,
        the `place` as in `read_rows`. A run that is not `known` is described, without rows. `last`:
        how far the run has come, also if its rows are not asked for. `more`: the answer has become
        too large, and the page should ask for the rest at once.
        """
        answer: dict[str, dict[str, Any]] = {}
        room = NUM_ANSWERED
        for path in run_directories(self.path):
            run = Run(path)
            key = f"{run.name}/{run.id}".encode("utf-8", "backslashreplace").decode()
            had = known.get(key, {})
            about, stamp, size = _about(path, _states(path), run.held())
            new = answer[key] = {"last": last_reached(path / "metrics.jsonl")}
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
        return answer

    def _read_on(self, path: Path, place: Sequence[int]) -> dict[str, Any]:
        try:
            read = read_rows(path, place)
        except DamagedError:
            return {**NO_ROWS, "afresh": place[0] > 0}
        if read["num_damaged"] and path not in self._warned:
            self._warned.add(path)
            log.warning("%s: %d damaged lines are left out", path, read["num_damaged"])
        return read


def last_reached(path: Path) -> dict[str, float]:
    """Step, epoch, tokens and seconds of the last whole row of the training; empty if there is
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
        # Skip a test, which comes after the last epoch, or after none if a finished run is resumed.
        if row is not None and not any(key.startswith("test/") for key in row):
            return {key: row[key] for key in REACHED if type(row.get(key)) in (int, float)}
    return {}


def _state(path: Path) -> tuple[int, ...]:
    """A value that changes whenever a file's content may have changed, or its permissions."""
    try:
        at = path.stat()
    except OSError as error:
        return (error.errno or 0,)
    return at.st_ino, at.st_ctime_ns, at.st_size


@lru_cache(maxsize=10_000)
def _about(
    path: Path, states: Sequence[Sequence[int]], held: bool
) -> tuple[dict[str, Any], int, int]:
    """Status, config and summary of a run, with a problem for each that cannot be read; then the
    checksum and the size of all that. states, held: change whenever the result may, for the cache.
    """
    run = Run(path)
    problems: list[str] = []
    about: dict[str, Any] = {"path": str(path), "problems": problems}
    readers: dict[str, Callable[[], Any]] = {
        "status": run.status,
        "config": lambda: read_yaml(path / "config.yaml", YAML),
        "summary": lambda: run.read("summary.json"),
        "sweep": lambda: _trial(run),
        **{name: partial(_look_at, path / f"{name}.jsonl") for name in LINES},
    }
    for name, read in readers.items():
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
    """The states of all files that `_about` reads; of files of rows only whether they are files."""
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
    """The sweep.json of the sweep that a run would be a trial of."""
    return path.parent / f"{path.name.rpartition('-')[0]}-sweep" / "sweep.json"


def _trial(run: Run) -> Mapping[str, Any]:
    """The record of a run in its sweep's sweep.json, if it is a trial of one."""
    file = _sweep(run.path)
    if not os.path.lexists(file):
        return {}
    return _trials(file, _state(file)).get(f"{run.name}/{run.id}", {})


@lru_cache(maxsize=100)
def _trials(file: Path, state: Sequence[int]) -> Mapping[str, Mapping[str, Any]]:
    record = read_json(file, MAX_SWEEP)
    sweep = file.parent
    try:
        metric, trials = record["metric"], record["trials"]
        about = {"id": f"{sweep.parent.name}/{sweep.name}", "metric": str(metric)}
        return {trial["run"]: about | _checked(trial) for trial in trials}
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        what = f"is damaged: no trials as a sweep writes them ({error!r})"
        raise DamagedError(file, what) from error


def _checked(trial: Mapping[str, Any]) -> dict[str, Any]:
    """Outcome, value, values and validations of a trial; raises if their types are wrong."""
    kept = {name: trial[name] for name in ("outcome", "value", "values", "validations")}
    for number in (kept["value"], *kept["validations"]):
        if number is not None and not isinstance(number, int | float):
            raise ValueError(f"{number!r} is no number")
    return kept | {"outcome": str(kept["outcome"]), "values": dict(kept["values"].items())}
