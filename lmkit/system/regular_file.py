"""Reads files that may be damaged or hostile: only regular ones, within bounds, with one error."""

import json
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from io import BufferedReader
from pathlib import Path
from typing import Any

import yaml

from lmkit.errors import UserError

MAX_JSON = 4 << 20  # bytes
MAX_MANIFEST = 64 << 20  # bytes, of some 600,000 shards
MAX_SWEEP = 64 << 20  # bytes of a sweep.json, which has every validation of every trial
MAX_YAML = 1 << 20  # bytes; Python needs some 20 s to parse them, C one
MAX_ROW = 1 << 20  # bytes of a line of metrics.jsonl and its like
# YAML's aliases can stand for more values than there is memory.
MAX_VALUES = 100_000
MAX_DEPTH = 50  # beyond some 80, OmegaConf raises RecursionError
MAX_BITS = 1024  # of an integer: a longer one fits no float, and from 14,000 on cannot be printed
# Names in a run directory that must be those of files.
FILES = (".json", ".jsonl", ".yaml", ".ckpt", ".db", ".log", ".png")
TOO_DEEP = f"it holds values more than {MAX_DEPTH} within each other"
NAMES = {dict: "a mapping", list: "a list", str: "a text", type(None): "nothing"}
PLAIN = (str, int, float, type(None))
KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


class DamagedError(UserError):
    """A file is not what it should be; the message says which, what is wrong, and the remedy."""

    def __init__(
        self, path: Path, what: str, remedy: str = "put a sound copy in its place"
    ) -> None:
        super().__init__(f"{path} {what}; {remedy}")


@contextmanager
def opened(path: Path) -> Iterator[BufferedReader]:
    """Open a regular file for reading; never waits for another kind of file, such as a FIFO.

    Raises FileNotFoundError, and DamagedError for any other problem.
    """
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            raise DamagedError(path, f"is {KINDS[stat.S_IFMT(mode)]}, not a file")
        # It may have become a FIFO meanwhile, and opening that would wait for a writer.
        with open(path, "rb", opener=_without_waiting) as file:
            yield file
    except FileNotFoundError:
        raise
    except OSError as error:
        raise DamagedError(path, f"cannot be read: {error.strerror}") from error


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY)


def read_bytes(path: Path, most: int = MAX_JSON) -> bytes:
    """The content of a file with at most so many bytes; raises as `opened` does."""
    with opened(path) as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise DamagedError(path, f"has more than {most:,} bytes")
    return data


def listed(directory: Path, pattern: str) -> list[Path]:
    """The entries of a directory that match a pattern, sorted; empty if it does not exist.

    Raises DamagedError if it cannot be read: there might be entries.
    """
    try:
        return sorted(path for path in directory.iterdir() if fnmatchcase(path.name, pattern))
    except FileNotFoundError:
        return []
    except OSError as error:
        what = f"cannot be read: {error.strerror}"
        raise DamagedError(directory, what, "make it a directory that can") from error


def check_kind(path: Path) -> None:
    """Raise DamagedError if a path exists but cannot be written as a file; a directory is allowed
    unless its name is a file's."""
    try:
        kind = stat.S_IFMT(path.stat().st_mode)
    except FileNotFoundError:  # a link whose target does not exist yet
        return
    except OSError as error:
        raise DamagedError(path, f"cannot be read: {error.strerror}", "remove it") from error
    if kind in KINDS and not (kind == stat.S_IFDIR and path.suffix not in FILES):
        raise DamagedError(path, f"is {KINDS[kind]}, not a file", "remove it")


def read_json(path: Path, most: int = MAX_JSON) -> dict[str, Any]:
    """The mapping in a JSON file; raises as `opened` does."""
    data = read_bytes(path, most)
    value: dict[str, Any] = _plain(path, lambda: json.loads(data), dict, max_values=most)
    return value


def read_yaml(path: Path, loader: type[Any] | None = None, kind: type[Any] = dict) -> Any:
    """The mapping, or list, in a YAML file, with values as `loader` reads them; raises as `opened`
    does."""
    data = read_bytes(path, MAX_YAML)
    loader = _without_merging(loader or getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    return _plain(path, lambda: yaml.load(data.decode(), loader), kind, max_values=MAX_VALUES)


def _without_merging(loader: type[Any]) -> type[Any]:
    """The loader, but it refuses `<<`: lmkit does not write it, and nested ones can fill memory."""
    return type(loader.__name__, (loader,), {"flatten_mapping": lambda self, node: None})


def _plain(path: Path, parse: Callable[[], Any], kind: type[Any], max_values: int) -> Any:
    try:
        value = parse()
        check_plain(value, max_values)
    except yaml.MarkedYAMLError as error:
        at = f" in line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise DamagedError(path, f"is damaged: {error.problem}{at}") from error
    except RecursionError as error:
        raise DamagedError(path, f"is damaged: {TOO_DEEP}") from error
    except (ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(error).partition("; use sys.")[0].split())
        raise DamagedError(path, f"is damaged: {reason}") from error
    if not isinstance(value, kind):
        expected, found = (NAMES.get(each, "a number") for each in (kind, type(value)))
        raise DamagedError(path, f"is damaged: expected {expected}, found {found}")
    return value


def check_plain(value: Any, max_values: int = MAX_VALUES) -> None:
    """Raise ValueError if nested values are not plain, or, when expanded, too many or too deep."""
    num_values, level = 1, [value]
    for _ in range(MAX_DEPTH):
        inner: list[Any] = []
        for each in level:
            if isinstance(each, dict):
                inner += [*each.keys(), *each.values()]
            elif isinstance(each, list):
                inner += each
            elif not isinstance(each, PLAIN):
                raise ValueError(f"it holds a {type(each).__name__}")
            elif isinstance(each, int) and each.bit_length() > MAX_BITS:
                raise ValueError(f"it holds an integer of more than {MAX_BITS} bits")
            num_values += len(each) if isinstance(each, dict | list) else 0
            if num_values > max_values:
                raise ValueError(f"it holds more than {max_values:,} values")
        if not inner:
            return
        level = inner
    raise ValueError(TOO_DEEP)


def parse_row(line: bytes) -> dict[str, Any] | None:
    """A line of `metrics.jsonl` or a similar file as a mapping of plain values, None if invalid."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict):
        return None
    fits = (
        isinstance(value, PLAIN) and not (isinstance(value, int) and value.bit_length() > MAX_BITS)
        for value in row.values()
    )
    return row if all(fits) else None
