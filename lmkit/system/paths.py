"""Paths as users write them: what is there, what was meant, how they are shown."""

import csv
import difflib
import hashlib
import itertools
import os
from collections.abc import Sequence
from pathlib import Path

from lmkit.errors import UserError

PERMISSIONS = "check that it is there, and its permissions"
_NAMES_SHOWN = 8
_NAME_LENGTH = 60

Paths = str | Sequence[str]


def nearby(path: Path) -> str:
    """What a missing path may have meant: the names at its nearest directory that exists."""
    try:
        parent = next(p for p in path.absolute().parents if p.is_dir())
        names = sorted(entry.name for entry in parent.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        return f"what is there cannot be read: {reason(error)}"
    missing = path.absolute().relative_to(parent).parts[0]
    near = difflib.get_close_matches(missing, names, n=3, cutoff=0.6)
    return f"{parent} has {listed(near or names)}"


def listed(names: Sequence[str]) -> str:
    """At most eight names, each on the line and cut where it is long, and how many more."""
    more = len(names) - _NAMES_SHOWN
    flat = [" ".join(readable(name).split()) for name in names[:_NAMES_SHOWN]]
    short = [name if len(name) <= _NAME_LENGTH else f"{name[:_NAME_LENGTH]}..." for name in flat]
    shown = ", ".join(short) or "nothing in it"
    return f"{shown} and {more} more" if more > 0 else shown


def readable(name: str) -> str:
    r"""A file's name as Unicode text: a byte that is not UTF-8 as \xff."""
    try:
        encoded = os.fsencode(name)
    except UnicodeEncodeError:  # no file's name
        encoded = name.encode(errors="backslashreplace")
    return encoded.decode(errors="backslashreplace")


def as_list(text: str) -> list[str] | None:
    """The paths of `[a.txt,b/*.txt]`, double quotes around one that holds a comma; None for what
    is a path, or a pattern such as `[ab]/[0-9]`."""
    depths = list(itertools.accumulate((c == "[") - (c == "]") for c in text))
    if not text.startswith("[") or 0 in depths[:-1] or depths[-1] != 0 or exists(text):
        return None
    try:
        (names,) = csv.reader([text[1:-1]], skipinitialspace=True)
    except csv.Error:  # of what no list has in it, as a line end
        return None
    return [name.strip() for name in names]


def exists(path: str) -> bool:
    """Whether there is such a path; a name that no file can have is none."""
    return os.path.exists(path)  # noqa: PTH110 - Path.exists raises for a name that is too long


def spelled(path: Paths) -> str:
    """A path, or a list of them, as it is written on the command line."""
    return path if isinstance(path, str) else f"[{','.join(path)}]"


def located(path: str) -> Path:
    """The path as it stands, with a leading ~/ read as the home directory."""
    return Path(path).expanduser() if path.startswith("~/") else Path(path)


def found_at(path: str, key: str) -> Path:
    """As `located`; raises UserError where it lies in a directory that may not be searched."""
    place = located(path)
    try:
        place.stat()
    except PermissionError as error:
        raise UserError(f"{key}={path} cannot be read: {reason(error)}") from None
    except (OSError, ValueError):
        pass  # it is not there
    return place


def reason(error: OSError, path: str = "") -> str:
    """Why, and of what, if that is not the path itself."""
    place = "" if error.filename in (None, path) else f"{error.filename}: "
    return f"{place}{error.strerror}"


def sha256(path: Path) -> str:
    """The hash of a file's bytes as they lie on disk."""
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): {PERMISSIONS}") from None


def state(path: Path) -> tuple[int, int]:
    """Size and time of a file, which change where it is written to."""
    try:
        status = path.stat()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): {PERMISSIONS}") from None
    return status.st_size, status.st_mtime_ns
