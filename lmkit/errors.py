"""The errors that end a command: mistakes of the user, faults of the machine, failed results."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class UserError(Exception):
    """A mistake in config, path or data; the message says what, where, what was found and expected,
    and the remedy."""


class MachineError(UserError):
    """A fault of the machine, such as a full disk: once it is mended, the same command resumes."""


class ResultError(Exception):
    """A command has done its work, but the result is a failure.

    result: the value that the command would have returned. exit_code: of the process.
    """

    def __init__(self, message: str, result: Any, exit_code: int = 1) -> None:
        super().__init__(message)
        self.result = result
        self.exit_code = exit_code


# Errors of writing to a disk that is full or failing, with the remedy.
DISK = {
    errno.ENOSPC: "make room there",
    errno.EDQUOT: "make room there or have the quota raised",
    errno.EFBIG: "raise the limit on the size of a file (ulimit -f)",
    errno.EROFS: "have the file system mounted for writing",
    errno.EIO: "look after the disk",
}
ACCESS = (errno.EACCES, errno.EPERM)


def exit_code(error: BaseException) -> int:
    """The exit code of a process that an error ends: 2 for mistakes of the user, 130 or 143 for a
    signal."""
    if as_user_error(error):
        return 2
    return int(getattr(error, "exit_code", 1))


def as_user_error(error: BaseException) -> UserError | None:
    """An error as a UserError, if the user can mend it; None for a defect, which needs its stack.

    Beside UserErrors these are the system's errors about files, and a full disk also if a library
    has raised something else because of it.
    """
    if isinstance(error, UserError):
        return error
    chain = [cause for cause in causes(error) if isinstance(cause, OSError)]
    # Errors of lmkit's own writes name a file, those of libraries may not: prefer the former.
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
    """The error that `what` in `path` cannot be written: a MachineError for a full or failing disk,
    else a UserError."""
    full = error.errno in DISK
    free = room(str(path)) if full else ""
    return (MachineError if full else UserError)(f"{what}: {error.strerror}{free}; {remedy}")


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error, its cause, the cause of that, and so on."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _name(error: OSError) -> str:
    return "a file" if error.filename is None else os.fsdecode(error.filename)


def room(path: str | bytes | None) -> str:
    """The text ` (... of ... are free)` for the file system of a path, "" if that is unknown."""
    if path is None:
        return ""
    existing = Path(os.fsdecode(path))
    try:
        while not existing.exists():
            existing = existing.parent
        system = os.statvfs(existing)
    except OSError:
        return ""
    free, size = (_bytes(n * system.f_frsize) for n in (system.f_bavail, system.f_blocks))
    files = "; no file more" if system.f_files and not system.f_favail else ""
    return f" ({free} of {size} are free{files})"


def _bytes(number: float) -> str:
    units = ["bytes", "KiB", "MiB", "GiB", "TiB"]
    while number >= 1024 and len(units) > 1:
        number /= 1024
        units.pop(0)
    return f"{number:,.3g} {units[0]}" if number < 1000 else f"{number:,.0f} {units[0]}"


def install(extra: str) -> str:
    """The command that installs an extra of lmkit, for messages."""
    return f"pip install 'recurrent-lmkit[{extra}]'"
