"""One job of a sweep: `lmkit train` in a process of its own, wherever a launcher calls for it."""

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
# By what a launcher leaves in a job's environment its run would be another than alone.
PLACE = re.compile(
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
        """Those of a sweep so far, by number."""
        files = directory.glob(f"*/{RESULT}")
        found = [cls(**json.loads(file.read_text(encoding="utf-8"))) for file in files]
        return sorted(found, key=lambda outcome: outcome.job)


@dataclass(frozen=True)
class Job:
    """Hydra's task; the fields are those of the sweep, the rest is in HydraConfig."""

    identity: str
    directory: Path
    cwd: Path
    config_dir: str | None
    flags: list[str]
    threads: dict[str, str]  # what the sweep's environment says of them

    def __call__(self, config: Any) -> float:
        """The best nll of the validations, or infinity, with which a sweeper can go on."""
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
            except Exception as error:  # as submitit raises at the end of a job's time
                return Outcome(*known, process.returncode, f"ended by its launcher: {error}")
        if code := process.returncode:
            return Outcome(*known, code, _reason(code, file.read_bytes()[begins:].decode()))
        summary = json.loads(out)
        return Outcome(*known, 0, "", summary["run"], summary.get("best/val/nll"))

    def _environment(self) -> dict[str, str]:
        """The launcher's, less what it says of processes and threads."""
        kept = {
            key: value
            for key, value in os.environ.items()
            if not PLACE.match(key) and not THREADS.match(key)
        }
        return kept | self.threads | {GROUP: self.identity}


def ask_to_stop(directory: Path, signum: int) -> None:
    """Have every job of a sweep, on whichever machine, pass a signal on to its run."""
    write_atomically(directory / "stop", str(signum).encode())


def asked_to_stop(directory: Path) -> int | None:
    """The signal that the sweep was stopped by."""
    try:
        return int((directory / "stop").read_text())
    except FileNotFoundError:
        return None


def clear(directory: Path) -> None:
    """Make a sweep's directory, without what an earlier sweep in it came to."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for file in (directory / "stop", *directory.glob(f"*/{RESULT}")):
            file.unlink(missing_ok=True)
    except OSError as error:
        what = f"cannot write the sweep's directory {directory}"
        raise cannot_write(what, directory, error, "give another place with outputs=DIR") from error


def _attend(process: subprocess.Popen[bytes], directory: Path) -> bytes:
    """The process's stdout, at its end; it is stopped with the sweep, or with this job."""
    told = False
    try:
        while True:
            try:
                return process.communicate(timeout=POLL)[0]
            except subprocess.TimeoutExpired:
                if not told and (signum := asked_to_stop(directory)):
                    process.send_signal(signum)
                    told = True
    except BaseException:  # SystemExit: submitit has queued the job again
        process.terminate()
        process.communicate()
        raise


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """A terminal sends Ctrl-C to joblib's processes too, but it is the sweep's to pass on."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, lambda *_: None)  # not SIG_IGN: that is inherited
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _reason(code: int, log: str) -> str:
    """What a process that failed said last: its error, or the last line of a stack."""
    if code < 0:
        return f"killed by {name_of(-code)}"
    return told_error(log) or log.strip().rpartition("\n")[2]
