"""What ends a command: a mistake that the user can mend, the machine, or a result that is bad."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class UserError(Exception):
    """A mistake in config, path or data: says what, where, found and expected, and the remedy."""


class MachineError(UserError):
    """The machine's doing: once it is mended, as by making room on a disk, the same command goes
    on."""


class ResultError(Exception):
    """A command has done its work, and what came of it is a failure.

    result: what the command would have returned. exit_code: of the process.
    """

    def __init__(self, message: str, result: Any, exit_code: int = 1) -> None:
        super().__init__(message)
        self.result = result
        self.exit_code = exit_code


# What the system answers to a write on a disk that has no room or takes no more, and the remedy.
DISK = {
    errno.ENOSPC: "make room there",
    errno.EDQUOT: "make room there or have the quota raised",
    errno.EFBIG: "raise the limit on the size of a file (ulimit -f)",
    errno.EROFS: "have the file system mounted for writing",
    errno.EIO: "look after the disk",
}
ACCESS = (errno.EACCES, errno.EPERM)


def exit_code(error: BaseException) -> int:
    """Of the process that an error ends: 2 for the user's mistakes, 130 or 143 for a signal."""
    if as_user_error(error):
        return 2
    return int(getattr(error, "exit_code", 1))


def as_user_error(error: BaseException) -> UserError | None:
    """An error that the user can mend, in a sentence; None for a defect, which needs its stack.

    Beside UserErrors these are what the system answers about files, and a disk without room also
    where a library has raised something else because of it.
    """
    if isinstance(error, UserError):
        return error
    chain = [cause for cause in causes(error) if isinstance(cause, OSError)]
    # A library's own write names no file; what our code writes does.
    chain.sort(key=lambda each: each.filename is None)
    for each in chain:
        if each.errno in DISK:
            return MachineError(
                f"cannot write {_name(each)}: {each.strerror}{room(each.filename)}; "
                f"{DISK[each.errno]}"
            )
    if not isinstance(error, OSError) or isinstance(error, ConnectionError) or not error.strerror:
        return None
    remedy = f"; user {os.geteuid()} needs the permission" if error.errno in ACCESS else ""
    where = f"{error.filename}: " if error.filename is not None else ""
    return UserError(f"{where}{error.strerror}{remedy}")


def cannot_write(what: str, path: Path, error: OSError, remedy: str) -> UserError:
    """That `what` in `path` cannot be written, as the user's mistake or the machine's doing."""
    full = error.errno in DISK
    free = room(str(path)) if full else ""
    return (MachineError if full else UserError)(f"{what}: {error.strerror}{free}; {remedy}")


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error, what it came of, and so on."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _name(error: OSError) -> str:
    return "a file" if error.filename is None else os.fsdecode(error.filename)


def room(path: str | bytes | None) -> str:
    """` (so much is free)` of the file system of a path; nothing where that cannot be told."""
    if path is None:
        return ""
    there = Path(os.fsdecode(path))
    try:
        while not there.exists():
            there = there.parent
        found = os.statvfs(there)
    except OSError:
        return ""
    free, size = (_bytes(n * found.f_frsize) for n in (found.f_bavail, found.f_blocks))
    files = "; no file more" if found.f_files and not found.f_favail else ""
    return f" ({free} of {size} are free{files})"


def _bytes(number: float) -> str:
    units = ["bytes", "KiB", "MiB", "GiB", "TiB"]
    while number >= 1024 and len(units) > 1:
        number /= 1024
        units.pop(0)
    return f"{number:,.3g} {units[0]}" if number < 1000 else f"{number:,.0f} {units[0]}"


def install(extra: str) -> str:
    """The command that brings what an extra of lmkit needs, for messages."""
    return f"pip install 'recurrent-lmkit[{extra}]'"
