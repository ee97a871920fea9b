"""Paths as users write them: resolving them, suggesting others, showing them in messages."""

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
    """Suggestions for a missing path: the names in its nearest directory that exists."""
    try:
        parent = next(p for p in path.absolute().parents if p.is_dir())
        names = sorted(entry.name for entry in parent.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        return f"what is there cannot be read: {reason(error)}"
    missing = path.absolute().relative_to(parent).parts[0]
    near = difflib.get_close_matches(missing, names, n=3, cutoff=0.6)
    return f"{parent} has {listed(near or names)}"


def listed(names: Sequence[str]) -> str:
    """At most eight names as a text, long ones shortened, and the number of others."""
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
    """The paths in a list `[a.txt,b/*.txt]`, where double quotes surround one with a comma; None if
    the text is a path, or a pattern such as `[ab]/[0-9]`."""
    depths = list(itertools.accumulate((c == "[") - (c == "]") for c in text))
    if not text.startswith("[") or 0 in depths[:-1] or depths[-1] != 0 or exists(text):
        return None
    try:
        (names,) = csv.reader([text[1:-1]], skipinitialspace=True)
    except csv.Error:  # something that no list contains, such as a line end
        return None
    return [name.strip() for name in names]


def exists(path: str) -> bool:
    """Whether a path exists; False for a name that no file can have."""
    return os.path.exists(path)  # noqa: PTH110 - Path.exists raises for a name that is too long


def spelled(path: Paths) -> str:
    """A path, or a list of them, as it is written on the command line."""
    return path if isinstance(path, str) else f"[{','.join(path)}]"


def located(path: str) -> Path:
    """The path as written, but with a leading ~/ replaced by the home directory."""
    return Path(path).expanduser() if path.startswith("~/") else Path(path)


def found_at(path: str, key: str) -> Path:
    """As `located`; raises UserError if the path is in a directory that cannot be searched."""
    file = located(path)
    try:
        file.stat()
    except PermissionError as error:
        raise UserError(f"{key}={path} cannot be read: {reason(error)}") from None
    except (OSError, ValueError):
        pass  # it does not exist
    return file


def reason(error: OSError, path: str = "") -> str:
    """The message of an error, with the name of its file if that is not `path`."""
    file = "" if error.filename in (None, path) else f"{error.filename}: "
    return f"{file}{error.strerror}"


def sha256(path: Path) -> str:
    """The hash of a file's bytes on disk."""
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): {PERMISSIONS}") from None


def state(path: Path) -> tuple[int, int]:
    """Size and modification time of a file, which change when it is written to."""
    try:
        status = path.stat()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): {PERMISSIONS}") from None
    return status.st_size, status.st_mtime_ns
