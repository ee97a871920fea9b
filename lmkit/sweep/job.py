"""A job of `train -m`: `lmkit train` in a process of its own, wherever a launcher calls it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from lmkit.config.grammar import spell
from lmkit.config.groups import config_folders, group_options
from lmkit.errors import cannot_write
from lmkit.run import GROUP
from lmkit.run.process import start, told_error
from lmkit.system.files import strict_json, write_atomically
from lmkit.system.redaction import mask
from lmkit.system.signals import name_of

POLL = 0.2  # seconds
LOG = "log.txt"
RESULT = "result.json"
# Variables that a launcher sets for a job; with them its run would differ from one started alone.
LAUNCHER = re.compile(
    r"(SLURM|SUBMITIT|TORCHELASTIC|OMPI|PMIX?)_|((GROUP|NODE|LOCAL)_)?(RANK|WORLD_SIZE)$"
    r"|MASTER_(ADDR|PORT)$"
)
THREADS = re.compile(r"[A-Z]+_(NUM|MAXIMUM)_THREADS$")


@dataclass(frozen=True)
class Outcome:
    """How a job ended; `exit_code` is None if the sweep was stopped before it began."""

    job: int
    run_id: str
    overrides: list[str]
    exit_code: int | None
    why: str = ""
    run: str | None = None
    nll: float | None = None  # the best of the validations

    def write(self, directory: Path) -> None:
        data = strict_json(asdict(self), indent=2).encode()
        write_atomically(directory / str(self.job) / RESULT, data)

    @classmethod
    def all(cls, directory: Path) -> list[Outcome]:
        """The outcomes of a sweep so far, ordered by job."""
        files = directory.glob(f"*/{RESULT}")
        outcomes = [cls(**json.loads(file.read_text(encoding="utf-8"))) for file in files]
        return sorted(outcomes, key=lambda outcome: outcome.job)


@dataclass(frozen=True)
class Job:
    """The function that Hydra calls for each job. Its fields belong to the whole sweep; HydraConfig
    has the values of the job."""

    identity: str
    directory: Path
    cwd: Path
    config_dir: str | None
    flags: list[str]
    threads: dict[str, str]  # variables for numbers of threads in the sweep's environment

    def __call__(self, config: Any) -> float:
        """The best nll of the validations; if there is none infinity, which a sweeper can use."""
        hydra = HydraConfig.get()
        lines = OmegaConf.to_container(hydra.overrides.task, resolve=False)
        assert isinstance(lines, list)
        options = group_options(config_folders(self.config_dir))
        (self.directory / str(hydra.job.num)).mkdir(parents=True, exist_ok=True)
        outcome = self._train(hydra.job.num, [spell(str(line), options) for line in lines])
        outcome.write(self.directory)
        return float("inf") if outcome.nll is None else outcome.nll

    def _train(self, number: int, arguments: list[str]) -> Outcome:
        run_id = f"{self.identity}-{number}"
        known = (number, run_id, list(map(mask, arguments)))
        if asked_to_stop(self.directory):
            return Outcome(*known, None, "not begun")
        file = self.directory / str(number) / LOG
        with file.open("ab") as log, _without_interrupts():
            begins = log.tell()
            process = start(
                ["train", *self.flags, *arguments, f"run_id={run_id}", "format=json"],
                self._environment(),
                cwd=self.cwd,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )
            try:
                out = _attend(process, self.directory)
            except Exception as error:  # as submitit raises when a job's time is over
                return Outcome(*known, process.returncode, f"ended by its launcher: {error}")
        if code := process.returncode:
            return Outcome(*known, code, _reason(code, file.read_bytes()[begins:].decode()))
        summary = json.loads(out)
        return Outcome(*known, 0, "", summary["run"], summary.get("best/val/nll"))

    def _environment(self) -> dict[str, str]:
        """The launcher's environment, without its variables for processes and threads."""
        kept = {
            key: value
            for key, value in os.environ.items()
            if not LAUNCHER.match(key) and not THREADS.match(key)
        }
        return kept | self.threads | {GROUP: self.identity}


def ask_to_stop(directory: Path, signum: int) -> None:
    """Make every job of a sweep, on any machine, pass a signal on to its run."""
    write_atomically(directory / "stop", str(signum).encode())


def asked_to_stop(directory: Path) -> int | None:
    """The signal with which the sweep was stopped; None if it was not."""
    try:
        return int((directory / "stop").read_text())
    except FileNotFoundError:
        return None


def clear(directory: Path) -> None:
    """Make a sweep's directory, and remove the outcomes of an earlier sweep from it."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for file in (directory / "stop", *directory.glob(f"*/{RESULT}")):
            file.unlink(missing_ok=True)
    except OSError as error:
        what = f"cannot write the sweep's directory {directory}"
        raise cannot_write(what, directory, error, "give another place with outputs=DIR") from error


def _attend(process: subprocess.Popen[bytes], directory: Path) -> bytes:
    """Wait for a process and return its stdout; it is stopped with the sweep, or with this job."""
    signalled = False
    try:
        while True:
            try:
                return process.communicate(timeout=POLL)[0]
            except subprocess.TimeoutExpired:
                if not signalled and (signum := asked_to_stop(directory)):
                    process.send_signal(signum)
                    signalled = True
    except BaseException:  # SystemExit: submitit has queued the job again
        process.terminate()
        process.communicate()
        raise


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """Ignore Ctrl-C, which a terminal sends to joblib's processes too: the sweep passes it on."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, lambda *_: None)  # not SIG_IGN: that is inherited
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _reason(code: int, log: str) -> str:
    """Why a process failed: its error message, or the last line of a stack."""
    if code < 0:
        return f"killed by {name_of(-code)}"
    return told_error(log) or log.strip().rpartition("\n")[2]
