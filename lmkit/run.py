"""The run directory: who holds it, what was asked for, where it ran and how it ended."""

from __future__ import annotations

import fcntl
import json
import logging
import math
import os
import re
import secrets
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from multiprocessing.reduction import DupFd
from pathlib import Path
from typing import Any, Literal, Self

import yaml

from lmkit import history
from lmkit.atomic import write_atomically, write_over
from lmkit.environment import environment
from lmkit.errors import UserError, cannot_write
from lmkit.paths import located
from lmkit.redaction import mask, redacted
from lmkit.regular_file import (
    MAX_JSON,
    MAX_SWEEP,
    DamagedError,
    check_kind,
    listed,
    read_bytes,
    read_json,
    read_yaml,
)
from lmkit.renamed import renamed
from lmkit.signals import POLL, is_alive

Status = Literal["running", "finished", "failed", "stopped"]

NON_FINITE = "non_finite.json"  # in the directory of a run that has diverged

# What bits depend on, beside the config.
EXACT = (
    *("versions.lmkit", "versions.torch", "hardware.processor", "hardware.gpus"),
    *("hardware.fp32_products", "trainer.precision"),
)

DIED = "its process died"
MAX_HOLDER = 1000  # bytes of a lock file
HOLDER = re.compile(r"process (?P<pid>\d+) on (?P<host>.+)")  # what `.lock` says
ORPHANS = 120.0  # seconds in which they end, even if they only start on a machine that is busy

log = logging.getLogger(__name__)


class Run:
    """One directory `outputs/<name>/<id>`; `start` makes this process its holder.

    A process that is spawned with the object holds it too, until both have ended.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.id = path.name
        self.name = path.parent.name
        self.continued = False
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

    @classmethod
    def create(
        cls,
        outputs: str | Path,
        name: str,
        run_id: str | None,
        config: Mapping[str, Any],
        overrides: Sequence[str] = (),
        command: Sequence[str] = (),
    ) -> Self:
        """A new run, or the one of this `run_id` continued, held by this process.

        Raises UserError when the directory cannot be written, is held, or has another config.
        """
        run = cls.named(outputs, name, run_id)
        run.start(config, overrides, command)
        return run

    @classmethod
    def named(cls, outputs: str | Path, name: str, run_id: str | None) -> Self:
        """The run of this name and id, or of a new id, of which nothing is written yet."""
        for key, value in (("name", name), ("run_id", run_id)):
            if value is not None:
                check_name(key, str(value))
        return cls(Path(outputs).absolute() / str(name) / str(run_id or mint_id()))

    @classmethod
    def all(cls, outputs: str | Path) -> list[Self]:
        """Every run under `outputs`, by the time it was last started, oldest first."""
        runs = [cls(path) for path in run_directories(outputs)]
        return sorted(runs, key=lambda run: (run.started(), run.id))

    @classmethod
    def find(
        cls, outputs: str | Path, which: str, lacks: Callable[[Run], str | None] | None = None
    ) -> Self:
        """The run that a directory, an id, the beginning of one, or `latest` names.

        lacks: what a run lacks for what it is wanted for; `latest` passes over those, and says so.
        """
        outputs, place = located(str(outputs)), located(which)
        if _is_run(place):
            return cls(place.resolve())
        runs = cls.all(outputs)
        if which == "latest" and runs:
            wanted = lacks or (lambda run: None)
            return cls._latest(outputs, runs, lambda run: run.damage() or wanted(run))
        found = [run for run in runs if which in (run.id, f"{run.name}/{run.id}")]
        found = found or [run for run in runs if run.id.startswith(which)]
        if len(found) == 1:
            return found[0]
        listed = "".join(f"\n  {run.name}/{run.id}" for run in (found or runs)[-10:])
        if found:
            raise UserError(f"RUN={which} names {len(found)} runs in {outputs}; say which:{listed}")
        there = f"; there are:{listed}" if runs else ", which has no runs"
        raise UserError(f"RUN={which} names no run in {outputs}{there}")

    @classmethod
    def _latest(
        cls, outputs: str | Path, runs: Sequence[Self], lacks: Callable[[Run], str | None]
    ) -> Self:
        newest = runs[-1]
        for run in reversed(runs):
            if lacks(run) is None:
                if run is not newest:
                    log.info(
                        "latest is %s/%s: the newer %s/%s %s",
                        *(run.name, run.id, newest.name, newest.id, lacks(newest)),
                    )
                return run
        raise UserError(
            f"RUN=latest: none of the {len(runs)} runs in {outputs} can be used; "
            f"the newest, {newest.name}/{newest.id}, {lacks(newest)}"
        )

    def check(self, config: Mapping[str, Any]) -> None:
        """Raise UserError where `start` would, as far as that can be known without writing."""
        if os.path.expandvars(self.path) != str(self.path):
            raise UserError(
                f"{self.path}: loggers would put the value of a variable of the environment in the "
                "place of the $; give another place with outputs=DIR"
            )
        there = next(place for place in (self.path, *self.path.parents) if place.exists())
        try:
            with tempfile.TemporaryFile(dir=there):  # os.access says yes to root, wrongly in /proc
                pass
            self.check_links()
            for path in listed(self.path, "*.jsonl"):
                with path.open("ab"):  # as it will be once the training goes
                    pass
        except OSError as error:
            raise self._unwritable(error) from error
        if self.held():
            self._await_orphans()
        if self.held():
            raise self._is_held(self._holder())
        if (self.path / "config.yaml").is_file():
            self._check_same(config)

    def start(
        self,
        config: Mapping[str, Any],
        overrides: Sequence[str] = (),
        command: Sequence[str] = (),
    ) -> None:
        """Hold the directory and write down what is about to run there."""
        try:
            self.check_links()
            (self.path / "checkpoints").mkdir(parents=True, exist_ok=True)
            self._hold()
            self.continued = (self.path / "config.yaml").is_file()
            here = environment(command)
            if self.continued:
                self._check_same(config)
                self._compare(config, here)
            self._note_overrides(config, list(map(mask, overrides)))
            self.add("environment.json", here)
            self.write_status("running")
            self.write("config.yaml", dict(config))
        except OSError as error:
            self.release()
            raise self._unwritable(error) from error
        except UserError:
            self.release()
            raise

    @contextmanager
    def holding(self) -> Iterator[None]:
        """Hold the directory, which is made where there is none, for something else than a run."""
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
        """Let go of the directory; the kernel does so itself when the process dies."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def check_links(self) -> None:
        """Raise UserError where what is written to the run would not become a file inside it: at a
        link, at a FIFO."""
        outputs = self.path.parents[1].resolve()
        home = outputs / self.name / self.id
        if (found := self.path.resolve()) != home:
            raise UserError(
                f"{self.path} is a link to {found}: a run writes inside {outputs} alone; "
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

    def config(self) -> dict[str, Any]:
        """The resolved config, secrets unresolved."""
        return renamed(self.read("config.yaml"))

    def write_status(
        self, status: Status, reason: str | None = None, exit_code: int | None = None
    ) -> None:
        """How the run stands; `started` and `ended` are those of the holding process."""
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
            # How it ended is not to hide why; to readers a free lock says that it has ended.
            with suppress(OSError):
                write_over(self.path / "status.json", _as_text("status.json", redacted(value)))

    def status(self) -> dict[str, Any]:
        """status.json as it is true now: a run whose process died without a word has failed."""
        status = self.read("status.json")
        if status.get("status") == "running" and not self.held():
            return status | {"status": "failed", "reason": DIED}
        return status

    def started(self) -> float:
        """When it was last started, in seconds since 1970; where no file says so, when the
        directory was last changed."""
        try:
            return datetime.fromisoformat(self.read("status.json")["started"]).timestamp()
        except (UserError, KeyError, TypeError, ValueError, OverflowError):
            with suppress(OSError):
                return self.path.lstat().st_mtime
        return 0.0

    def damage(self) -> str | None:
        """Why no command can use the run, as the end of a sentence."""
        try:
            self.status()
            lost = not self.config()
        except DamagedError as error:
            return f"cannot be used: {error}"
        return "has lost its config.yaml" if lost else None

    def held(self) -> bool:
        """Whether some process, this one included, holds the directory."""
        try:
            lock = os.open(self.path / ".lock", os.O_RDONLY | os.O_NONBLOCK)
        except FileNotFoundError:
            return False
        except OSError:  # somebody else's, who may hold it
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

        What is hidden is redacted, but in config.yaml, which the check keeps free of it.
        """
        if name != "config.yaml":
            value = redacted(value)
        write_atomically(self.path / name, _as_text(name, value))

    def add(self, name: str, value: Mapping[str, Any]) -> None:
        """Write a `.json` record of how the run was begun; to one that is there only add."""
        value = json.loads(strict_json(redacted(value)))
        if not (record := self.read(name)):
            self.write(name, value)
        elif changed := history.changes(record, value):
            self.write(name, history.gained(record, changed))

    def has_diverged(self) -> bool:
        """Whether a loss or a gradient of the run was once not finite."""
        return (self.path / NON_FINITE).is_file()

    def read(self, name: str) -> dict[str, Any]:
        """A file's mapping (the list of overrides.yaml); empty when there is no such file.

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
        """As `read`, of a file that is about to be written anew: damage costs a warning."""
        try:
            return self.read(name)
        except DamagedError as error:
            log.warning("%s: it is written anew", error)
            return {}

    def _unwritable(self, error: OSError) -> UserError:
        what = f"cannot write the run directory {self.path}"
        return cannot_write(what, self.path, error, "give another place with outputs=DIR")

    def _holder(self) -> str:
        """What the holder has written about itself, if that can be read."""
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
        """Where the holder was killed, wait for the end of the processes that it had started."""
        holder = HOLDER.fullmatch(self._holder().strip())
        if holder and holder["host"] == socket.gethostname() and not is_alive(int(holder["pid"])):
            log.warning("%s has died; waiting for the processes that it started to end", holder[0])
            deadline = time.monotonic() + ORPHANS
            while self.held() and time.monotonic() < deadline:
                time.sleep(POLL)

    def _hold(self) -> None:
        lock = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        for patience in range(10, -1, -1):  # somebody else's `held` takes it for a moment
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

    def _note_overrides(self, config: Mapping[str, Any], overrides: list[str]) -> None:
        record: Any = self.read("overrides.yaml")
        if isinstance(record, list) and self.continued:
            overrides = history.overrides_gained(record, overrides, self.config(), config)
        self.write("overrides.yaml", overrides)

    def _check_same(self, config: Mapping[str, Any]) -> None:
        changes = [
            f"\n  {key}: {then} there, {now} now"
            for key, then, now in history.refused(
                self.config(), config, diverged=self.has_diverged()
            )
        ]
        if changes:
            raise UserError(
                f"run_id={self.id} has another config ({self.path}):{''.join(changes)}\n"
                "only length, devices, precision and logging may change; for the rest begin "
                "another run, with lmkit train and another run_id"
            )

    def _compare(self, config: Mapping[str, Any], environment: Mapping[str, Any]) -> None:
        """Say so where another machine, version or precision cannot give the same bits."""
        then = {**self.read("environment.json"), **self.config()}
        flat, here = history.flat(then), history.flat({**environment, **config})
        changes = [
            f"{key} {flat[key]}, here {here.get(key, 'none')}"
            for key in EXACT
            if key in flat and flat[key] != here.get(key)
        ]
        if changes:
            log.warning(
                "%s began with %s: it goes on, but not to the bit", self.id, "; ".join(changes)
            )


def _as_text(name: str, value: Any) -> bytes:
    """Plain values as the content of a `.json` or `.yaml` file."""
    if name.endswith(".json"):
        return (strict_json(value, indent=2) + "\n").encode()
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True).encode()


def run_directories(outputs: str | Path) -> list[Path]:
    """Every `<name>/<id>` under `outputs` that is a run, whatever its files hold.

    Raises DamagedError where `outputs` cannot be read; a directory in it that is closed is passed.
    """
    found = []
    for name in listed(Path(outputs).absolute(), "*"):
        with suppress(DamagedError):
            found += [path for path in listed(name, "*") if _is_run(path)]
    return found


def _is_run(path: Path) -> bool:
    """Whether there is what a run has, or that cannot be seen because the directory is closed."""
    for name in ("config.yaml", "status.json"):
        try:
            (path / name).lstat()
        except PermissionError:
            return True
        except (OSError, ValueError):
            continue
        return True
    return False


def no_checkpoint(run: Run) -> str | None:
    """Why there is no trained model in a run yet."""
    try:
        there = any(path.is_file() for path in listed(run.path / "checkpoints", "*.ckpt"))
    except DamagedError as error:
        return f"cannot be used: {error}"
    return None if there else "has no checkpoint"


def no_end(run: Run) -> str | None:
    """Why a run cannot go on."""
    return "is still running" if run.held() else None


def mint_id() -> str:
    """A new run id: sorts by time (UTC), and differs within a second. Under SLURM that of the job,
    so that one that is queued again goes on with its run."""
    if job := os.environ.get("SLURM_JOB_ID"):
        check_name("SLURM_JOB_ID", job)
        return f"slurm-{job}"
    return f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"


def check_name(key: str, value: str) -> None:
    """Raises UserError where a name or an id cannot name a directory of `outputs`."""
    if not re.fullmatch(r"[^\W_][\w.+=,@-]*", value) or value == "latest":
        raise UserError(
            f"{key}={value}: expected letters, digits and any of ._+=,@- after the first letter "
            "or digit (it names a directory inside outputs), and not `latest`"
        )


def strict_json(value: Any, indent: int | None = None) -> str:
    """JSON that every reader takes: a number that is not finite becomes null."""
    return json.dumps(_finite(value), indent=indent, ensure_ascii=False, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
