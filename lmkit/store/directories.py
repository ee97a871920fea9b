"""Directories that one process makes once under a lock, and that exist whole or not at all."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from lmkit.errors import UserError
from lmkit.store.shard import writing
from lmkit.system.files import sync_directory

log = logging.getLogger(__name__)

Made = TypeVar("Made")


def make_once(target: Path, find: Callable[[Path], Made], make: Callable[[Path], None]) -> Made:
    """Return what `find` finds in `target`; if it is missing or damaged, one process calls `make`
    first.

    `make` fills a temporary directory, which then becomes `target` in one rename.
    """
    with contextlib.suppress(UserError):  # damage is dealt with under the lock
        if target.exists():
            return find(target)
    with locked(target.with_name(f"{target.name}.lock"), target):
        if target.exists():
            try:
                return find(target)
            except UserError as error:
                set_aside(target, error)
        new = target.with_name(f"{target.name}.tmp")  # may be left over from a process that died
        try:
            with writing(target):
                shutil.rmtree(new, ignore_errors=True)
                new.mkdir()
            make(new)
            with writing(target):
                sync_directory(new)
                new.rename(target)
                sync_directory(target.parent)
        finally:
            shutil.rmtree(new, ignore_errors=True)
        return find(target)


def set_aside(target: Path, error: UserError) -> None:
    """Rename a damaged file or directory out of the way, with a warning."""
    aside = target.with_name(f"{target.name}.damaged")
    log.warning("%s\nsetting it aside as %s and preparing it again", error, aside)
    with writing(target):
        if aside.is_dir():
            shutil.rmtree(aside, ignore_errors=True)
        target.rename(aside)


@contextlib.contextmanager
def locked(lock: Path, what: Path) -> Iterator[None]:
    """Hold a lock file against other processes; the kernel frees the lock if this process dies.

    At the end the file is removed, and with it the directories made for it that are still empty.
    """
    new = [directory for directory in lock.parents if not directory.exists()]
    with writing(what):
        held = _hold(lock, what)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            lock.unlink()
        os.close(held)
        with contextlib.suppress(OSError):  # not empty: something has been prepared
            for directory in new:
                directory.rmdir()


def _hold(lock: Path, what: Path) -> int:
    """A descriptor with the lock on the file that is there now, not on one removed meanwhile."""
    while True:
        lock.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            held = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                try:
                    fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    log.warning("%s: another process prepares it; waiting", what)
                    fcntl.flock(held, fcntl.LOCK_EX)
                if os.path.samestat(os.fstat(held), lock.stat()):
                    return held
            except BaseException:
                os.close(held)
                raise
            os.close(held)
