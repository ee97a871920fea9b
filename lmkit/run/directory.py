"""A directory that one process at a time may write to: its lock, its links, its files."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import re
import shlex
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from multiprocessing.reduction import DupFd
from pathlib import Path
from typing import Any, Literal

import yaml

from lmkit.errors import UserError, cannot_write
from lmkit.run import history
from lmkit.system.files import strict_json, write_atomically, write_over
from lmkit.system.redaction import redacted
from lmkit.system.regular_file import (
    MAX_JSON,
    MAX_SWEEP,
    DamagedError,
    check_kind,
    read_bytes,
    read_json,
    read_yaml,
)
from lmkit.system.signals import POLL, is_alive

Status = Literal["running", "finished", "failed", "stopped"]
DIED = "its process died"

MAX_HOLDER = 1000  # bytes of a lock file
HOLDER = re.compile(r"process (?P<pid>\d+) on (?P<host>.+)")  # what `.lock` says
ORPHANS = 120.0  # seconds within which they end, even while still starting on a busy machine

log = logging.getLogger(__name__)


class Directory:
    """A directory `outputs/<name>/<id>`; only the process that holds it writes to it.

    A process that is spawned with the object holds the directory too, until both have ended.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.id = path.name
        self.name = path.parent.name
        self._lock: int | None = None

    def __getstate__(self) -> dict[str, Any]:
        # A flock belongs to an open file, which is closed when the last process with it ends.
        lock = None if self._lock is None else DupFd(self._lock)
        return self.__dict__ | {"_lock": lock}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        if state["_lock"]:
            self._lock = state["_lock"].detach()
            os.set_inheritable(self._lock, False)

    @contextmanager
    def holding(self) -> Iterator[None]:
        """Hold the directory until the block ends; it is made if it does not exist."""
        try:
            self.check_links()
            self.path.mkdir(parents=True, exist_ok=True)
            self._hold()
        except OSError as error:
            raise self._unwritable(error) from error
        try:
            yield
        finally:
            self.release()

    def release(self) -> None:
        """Release the directory; the kernel does so itself when the process dies."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def check_links(self) -> None:
        """Raise UserError if writing to the run would not write a file inside it, because of a link
        or a FIFO."""
        outputs = self.path.parents[1].resolve()
        home = outputs / self.name / self.id
        if (target := self.path.resolve()) != home:
            raise UserError(
                f"{self.path} is a link to {target}: a run writes inside {outputs} alone; "
                "name the directory that it stands for"
            )
        for directory, names, files in os.walk(home):
            for path in (Path(directory) / name for name in (*names, *files)):
                check_kind(path)
                target = Path(os.path.realpath(path))  # Path.resolve raises for a loop
                if path.is_symlink() and not target.is_relative_to(home):
                    raise UserError(
                        f"{path} is a link to {target}, out of the run directory, where "
                        "nothing is to be written: remove the link"
                    )

    def write_status(
        self, status: Status, reason: str | None = None, exit_code: int | None = None
    ) -> None:
        """Write status.json; `started` and `ended` are times of the holding process."""
        now = history.time()
        before = self.before("status.json")
        running = status == "running"
        value = {
            "status": status,
            "reason": reason,
            "exit_code": exit_code,
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "created": before.get("created", now),
            "started": now if running else before.get("started", now),
            "ended": None if running else now,
        }
        try:
            self.write("status.json", value)
        except OSError:
            if running:
                raise
            # A failed write must not hide the error that ended the run; a free lock shows that it
            # has ended.
            with suppress(OSError):
                write_over(self.path / "status.json", as_text("status.json", redacted(value)))

    def status(self) -> dict[str, Any]:
        """status.json, corrected: a run whose process died without writing it has failed."""
        status = self.read("status.json")
        if status.get("status") == "running" and not self.held():
            return status | {"status": "failed", "reason": DIED}
        return status

    def outputs_argument(self) -> str:
        """The argument ` outputs=DIR` for a command, empty if the command needs none."""
        outputs = self.path.parents[1]
        if outputs == Path("outputs").absolute():
            return ""
        return " " + shlex.quote(f"outputs={outputs}")

    def held(self) -> bool:
        """Whether some process, this one included, holds the directory."""
        try:
            lock = os.open(self.path / ".lock", os.O_RDONLY | os.O_NONBLOCK)
        except FileNotFoundError:
            return False
        except OSError:  # another user's, who may hold it
            return True
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(lock)
        return False

    def write(self, name: str, value: Any) -> None:
        """Write a `.json` (strict) or `.yaml` file of plain values, whole or not at all.

        Secrets are redacted, except in config.yaml, where the check allows none.
        """
        if name != "config.yaml":
            value = redacted(value)
        write_atomically(self.path / name, as_text(name, value))

    def add(self, name: str, value: Mapping[str, Any]) -> None:
        """Write a `.json` record of how the run was begun; if it exists, only add what is new."""
        value = json.loads(strict_json(redacted(value)))
        if not (record := self.read(name)):
            self.write(name, value)
        elif changed := history.changes(record, value):
            self.write(name, history.gained(record, changed))

    def read(self, name: str) -> dict[str, Any]:
        """The mapping in a file (overrides.yaml: a list); empty if there is no such file.

        Raises DamagedError.
        """
        path = self.path / name
        try:
            if name.endswith(".json"):
                record = read_json(path, MAX_SWEEP if name == "sweep.json" else MAX_JSON)
                if not history.is_record(record):
                    raise DamagedError(path, "is damaged: what resumes have added is no list of it")
                return record
            kind = list if name == "overrides.yaml" else dict
            values: dict[str, Any] = read_yaml(path, kind=kind)
            return values
        except FileNotFoundError:
            return {}

    def before(self, name: str) -> dict[str, Any]:
        """As `read`, for a file that is about to be written anew: damage only causes a warning."""
        try:
            return self.read(name)
        except DamagedError as error:
            log.warning("%s: it is written anew", error)
            return {}

    def _unwritable(self, error: OSError) -> UserError:
        what = f"cannot write the run directory {self.path}"
        return cannot_write(what, self.path, error, "give another place with outputs=DIR")

    def _holder(self) -> str:
        """The text in which the holder names itself, "" if it cannot be read."""
        try:
            return read_bytes(self.path / ".lock", MAX_HOLDER).decode("utf-8", "replace")
        except (FileNotFoundError, DamagedError):
            return ""

    def _is_held(self, holder: str) -> UserError:
        return UserError(
            f"run_id={self.id} is held by {holder.strip() or 'another process'} ({self.path}): "
            "wait for it, stop it, or choose another run_id"
        )

    def _await_orphans(self) -> None:
        """If the holder was killed, wait until the processes that it started have ended."""
        holder = HOLDER.fullmatch(self._holder().strip())
        if holder and holder["host"] == socket.gethostname() and not is_alive(int(holder["pid"])):
            log.warning("%s has died; waiting for the processes that it started to end", holder[0])
            deadline = time.monotonic() + ORPHANS
            while self.held() and time.monotonic() < deadline:
                time.sleep(POLL)

    def _hold(self) -> None:
        lock = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        for patience in range(10, -1, -1):  # `held` in another process locks it for a moment
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if patience:
                    time.sleep(0.02)
        else:
            os.close(lock)
            raise self._is_held(self._holder())
        os.ftruncate(lock, 0)
        os.write(lock, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        self._lock = lock


def as_text(name: str, value: Any) -> bytes:
    """Plain values as the content of a `.json` or `.yaml` file."""
    if name.endswith(".json"):
        return (strict_json(value, indent=2) + "\n").encode()
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True).encode()
