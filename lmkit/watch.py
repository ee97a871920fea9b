"""What the run directories say by now, in pieces, for a page that follows them.

Nothing is kept between two questions: the page says how far it has read, and hears the rest.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any
from zlib import crc32

import yaml

from lmkit.errors import UserError
from lmkit.run import Run, check_size, strict_json

log = logging.getLogger(__name__)

NUM_BYTES = 1 << 20  # of a file's lines in one answer
NUM_LAST = 1 << 16  # bytes at its end, to look for the last row in
REACHED = ("step", "epoch", "tokens", "seconds")
NUM_MARKED = 256  # bytes before a place that tell whether the file is still the one read
YAML = getattr(yaml, "CBaseLoader", yaml.BaseLoader)  # every value as it is written


class Outputs:
    """All runs under a directory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._warned: set[Path] = set()

    def changes(self, known: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
        """Every run by `<name>/<id>`, each with what is new to one who has `known` of it.

        known: of a run, `stamp`, and for each file to be read on, `metrics` or `samples`, the
        place reached. A run that is not `known` is told about, without rows. `last`: how far the
        run has come, whether its rows are asked for or not.
        """
        found: dict[str, dict[str, Any]] = {}
        for file in sorted(self.path.glob("*/*/config.yaml")):
            run = Run(file.parent)
            key = f"{run.name}/{run.id}"
            had = known.get(key, {})
            about = _about(run)
            stamp = crc32(strict_json(about).encode("utf-8", "replace"))
            new: dict[str, Any] = {"last": last_reached(run.path / "metrics.jsonl")}
            if stamp != had.get("stamp"):
                new |= {"stamp": stamp, "about": about}
            for name in ("metrics", "samples"):
                if place := had.get(name):
                    new[name] = self._read_on(run.path / f"{name}.jsonl", place)
            found[key] = new
        return found

    def _read_on(self, path: Path, place: Sequence[int]) -> dict[str, Any]:
        piece = read_rows(path, place)
        if piece["num_damaged"] and path not in self._warned:
            self._warned.add(path)
            log.warning("%s: %d damaged lines are left out", path, piece["num_damaged"])
        return piece


def read_rows(path: Path, place: Sequence[int], num_bytes: int = NUM_BYTES) -> dict[str, Any]:
    """The whole lines of a file that is being written, from `place` on, about `num_bytes` of them.

    place: [bytes read, checksum of the last of them]; [0, 0] is the beginning. A resumed run
    cuts off rows and writes others: where the file no longer fits `place` it is read `afresh`.
    """
    offset, mark = place
    lines: list[bytes] = []
    before = b""
    afresh = offset > 0
    try:
        with path.open("rb") as file:
            start = max(0, offset - NUM_MARKED)
            file.seek(start)
            before = file.read(max(0, offset - start))
            if start + len(before) == offset and crc32(before) == mark:
                afresh = False
            else:
                before = b""
                offset = file.seek(0)
            # The last line may be half written.
            lines = [line for line in file.readlines(num_bytes) if line.endswith(b"\n")]
    except FileNotFoundError:
        offset = 0
    rows = [row for row in map(_row, lines) if row is not None]
    read = b"".join(lines)
    return {
        "rows": rows,
        "place": [offset + len(read), crc32((before + read)[-NUM_MARKED:])],
        "afresh": afresh,
        "more": len(read) >= num_bytes,
        "num_damaged": len(lines) - len(rows),
    }


def last_reached(path: Path) -> dict[str, float]:
    """Step, epoch, tokens and seconds of the last whole row; empty where there is none."""
    try:
        at = path.stat()
        return _reached(path, at.st_mtime_ns, at.st_size)
    except OSError:
        return {}


@lru_cache(maxsize=10_000)
def _reached(path: Path, changed: int, size: int) -> dict[str, float]:
    with path.open("rb") as file:
        file.seek(max(0, size - NUM_LAST))
        lines = file.read(NUM_LAST).splitlines(keepends=True)
    for line in reversed(lines):
        if line.endswith(b"\n") and (row := _row(line)) is not None:
            return {key: row[key] for key in REACHED if type(row.get(key)) in (int, float)}
    return {}


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def _about(run: Run) -> dict[str, Any]:
    """Status, config and summary; of what cannot be read, what is wrong with it."""
    problems: list[str] = []
    about: dict[str, Any] = {"path": str(run.path), "problems": problems}
    parts = {
        "status": run.status,
        "config": lambda: _config(run.path / "config.yaml"),
        "summary": lambda: run.read("summary.json"),
        "sweep": lambda: _trial(run),
    }
    for name, read in parts.items():
        try:
            about[name] = dict(read())
        except (UserError, OSError) as error:
            problems.append(str(error))
        except (AttributeError, LookupError, TypeError, ValueError):
            problems.append(f"{run.path}: its {name} is no mapping")
    return about


def _trial(run: Run) -> Mapping[str, Any]:
    """What the sweep that a run is a trial of says of it, if it is one."""
    sweep = Run(run.path.parent / f"{run.id.rpartition('-')[0]}-sweep")
    try:
        at = (sweep.path / "sweep.json").stat()
    except FileNotFoundError:
        return {}
    return _trials(sweep.path, at.st_mtime_ns).get(f"{run.name}/{run.id}", {})


@lru_cache(maxsize=100)
def _trials(path: Path, changed: int) -> Mapping[str, Mapping[str, Any]]:
    found = Run(path).read("sweep.json")
    about = {"id": f"{path.parent.name}/{path.name}", "metric": found["metric"]}
    parts = ("outcome", "value", "values", "validations")
    return {
        trial["run"]: about | {part: trial[part] for part in parts} for trial in found["trials"]
    }


def _config(path: Path) -> Mapping[str, Any]:
    at = path.stat()
    return _parsed(path, at.st_mtime_ns, at.st_size)


@lru_cache(maxsize=10_000)
def _parsed(path: Path, changed: int, size: int) -> Mapping[str, Any]:
    try:
        config: Mapping[str, Any] = yaml.load(path.read_text(encoding="utf-8"), Loader=YAML)
        check_size(config)
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise UserError(f"{path} is damaged: {error}") from error
    return config
