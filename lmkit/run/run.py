"""A run: its config, environment and status on disk, and finding one by its name."""

from __future__ import annotations

import logging
import os
import re
import secrets
import shlex
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from lmkit.errors import UserError
from lmkit.run import history
from lmkit.run.directory import Directory
from lmkit.run.environment import environment
from lmkit.run.renamed import renamed
from lmkit.system.paths import located
from lmkit.system.redaction import mask
from lmkit.system.regular_file import DamagedError, listed

GROUP = "LMKIT_GROUP"  # in the environment of a sweep's runs: its id
IMPORTED = "import.json"  # in the directory of a run that another program has trained
NON_FINITE = "non_finite.json"  # in the directory of a run that has diverged

# What results depend on, bit for bit, beside the config.
EXACT = (
    *("versions.lmkit", "versions.torch", "hardware.processor", "hardware.gpus"),
    *("hardware.fp32_products", "trainer.precision"),
)

log = logging.getLogger(__name__)


class Run(Directory):
    """A run's directory, with its config and status; from `start` on the training holds it."""

    continued = False  # whether `start` has found a run there

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
        """Start a new run, or resume the one with this `run_id`; this process then holds it.

        Raises UserError if the directory cannot be written, is held, or has another config.
        """
        run = cls.named(outputs, name, run_id)
        run.start(config, overrides, command)
        return run

    @classmethod
    def named(cls, outputs: str | Path, name: str, run_id: str | None) -> Self:
        """The run with this name and id, or with a new id; writes nothing."""
        for key, value in (("name", name), ("run_id", run_id)):
            if value is not None:
                check_name(key, str(value))
        return cls(Path(outputs).absolute() / str(name) / str(run_id or mint_id()))

    @classmethod
    def all(cls, outputs: str | Path) -> list[Self]:
        """Every run under `outputs`, ordered by the time of its last start, oldest first."""
        runs = [cls(path) for path in run_directories(outputs)]
        return sorted(runs, key=lambda run: (run.started(), run.id))

    @classmethod
    def find(
        cls, outputs: str | Path, which: str, lacks: Callable[[Run], str | None] | None = None
    ) -> Self:
        """The run named by a directory, an id, the beginning of an id, or `latest`.

        lacks: says what a run lacks for the purpose at hand, None if nothing; `latest` skips runs
        that lack something, and logs it.
        """
        outputs, directory = located(str(outputs)), located(which)
        if _is_run(directory):
            return cls(directory.resolve())
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
        many = f" {len(runs)}, the last of them" if len(runs) > 10 else ""
        there = f"; there are{many}:{listed}" if runs else ", which has no runs"
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
        """Raise UserError if `start` would, as far as can be known without writing."""
        if os.path.expandvars(self.path) != str(self.path):
            raise UserError(
                f"{self.path}: loggers would put the value of a variable of the environment in the "
                "place of the $; give another place with outputs=DIR"
            )
        existing = next(path for path in (self.path, *self.path.parents) if path.exists())
        try:
            with tempfile.TemporaryFile(dir=existing):  # os.access is wrong for root in /proc
                pass
            self.check_links()
            for path in listed(self.path, "*.jsonl"):
                with path.open("ab"):  # as the training will open it
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
        """Hold the directory and write the config, the environment and the status into it."""
        here = environment(command)  # first: it takes long, and a signal then leaves no directory
        try:
            self.check_links()
            (self.path / "checkpoints").mkdir(parents=True, exist_ok=True)
            self._hold()
            self.continued = (self.path / "config.yaml").is_file()
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

    def config(self) -> dict[str, Any]:
        """The config, resolved except for its secrets."""
        return renamed(self.read("config.yaml"))

    def started(self) -> float:
        """The time of the last start, in seconds since 1970; if no file says so, the time of the
        directory's last change."""
        try:
            return datetime.fromisoformat(self.read("status.json")["started"]).timestamp()
        except (UserError, KeyError, TypeError, ValueError, OverflowError):
            with suppress(OSError):
                return self.path.lstat().st_mtime
        return 0.0

    def command(self, name: str) -> str:
        """The command `lmkit NAME RUN`, as the user would type it in the current directory."""
        several = len(list(self.path.parents[1].glob(f"*/{self.id}/config.yaml"))) > 1
        which = f"{self.name}/{self.id}" if several else self.id
        return f"lmkit {name} {shlex.quote(which)}{self.outputs_argument()}"

    def damage(self) -> str | None:
        """Why no command can use the run, as the end of a sentence; None if one can."""
        try:
            self.status()
            lost = not self.config()
        except DamagedError as error:
            return f"cannot be used: {error}"
        return "has lost its config.yaml" if lost else None

    def has_diverged(self) -> bool:
        """Whether a loss or a gradient of the run was once not finite."""
        return (self.path / NON_FINITE).is_file()

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
        """Warn if another machine, version or precision cannot give the same results exactly."""
        then = {**self.read("environment.json"), **self.config()}
        flat, here = history.flat(then), history.flat({**environment, **config})
        changes = [
            f"{key} {flat[key]}, here {here.get(key, 'none')}"
            for key in EXACT
            if key in flat and flat[key] != here.get(key)
        ]
        if changes:
            log.warning(
                "%s began with %s: it goes on, but not bit for bit", self.id, "; ".join(changes)
            )


def run_directories(outputs: str | Path) -> list[Path]:
    """Every `<name>/<id>` under `outputs` that is a run, even a damaged one.

    Raises DamagedError if `outputs` cannot be read; skips directories in it that cannot be read.
    """
    directories = []
    for name in listed(Path(outputs).absolute(), "*"):
        with suppress(DamagedError):
            directories += [path for path in listed(name, "*") if _is_run(path)]
    return directories


def _is_run(path: Path) -> bool:
    """Whether a directory has the files of a run, or might have but cannot be read. A run that has
    lost its config is one too; a sweep's directory has a status as well, and is none."""
    sweep = any(_may_exist(path / name) for name in ("sweep.yaml", "study.db"))
    return _may_exist(path / "config.yaml") or (_may_exist(path / "status.json") and not sweep)


def _may_exist(path: Path) -> bool:
    try:
        path.lstat()
    except PermissionError:
        return True
    except (OSError, ValueError):
        return False
    return True


def no_checkpoint(run: Run) -> str | None:
    """Why there is no trained model in a run yet; None if there is one."""
    try:
        there = any(path.is_file() for path in listed(run.path / "checkpoints", "*.ckpt"))
    except DamagedError as error:
        return f"cannot be used: {error}"
    return None if there else "has no checkpoint"


def no_end(run: Run) -> str | None:
    """Why a run cannot be resumed; None if it can."""
    return "is still running" if run.held() else None


def mint_id() -> str:
    """A new run id: ids sort by time (UTC), and differ within a second. Under SLURM it is the
    job's, so that a job that is queued again resumes its run."""
    if job := os.environ.get("SLURM_JOB_ID"):
        check_name("SLURM_JOB_ID", job)
        return f"slurm-{job}"
    return f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"


def check_name(key: str, value: str) -> None:
    """Raise UserError if a name or an id cannot be the name of a directory in `outputs`."""
    if not re.fullmatch(r"[^\W_][\w.+=,@-]*", value) or value == "latest":
        raise UserError(
            f"{key}={value}: expected letters, digits and any of ._+=,@- after the first letter "
            "or digit (it names a directory inside outputs), and not `latest`"
        )
