"""A trial of a sweep: a process of `lmkit train`, followed by reading its metrics.jsonl."""

from __future__ import annotations

import math
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from lmkit.errors import MachineError
from lmkit.run import DIED, Run
from lmkit.run.jsonl import read_rows
from lmkit.run.process import start, told_error
from lmkit.system.regular_file import DamagedError, opened
from lmkit.system.signals import SIGNALS, name_of

TAIL = 4000  # bytes of a log in which to look for what went wrong


class TrialProcess:
    """The process of a trial. `values` has the metric of each validation so far, `row` the values
    that were logged last."""

    def __init__(
        self,
        run: Run,
        arguments: Sequence[str],
        metric: str,
        log: Path,
        environment: Mapping[str, str],
    ) -> None:
        """`arguments` train `run`; the output of the process is appended to `log`."""
        self.run = run
        self.metric = metric
        self.log = log
        self.values: list[float] = []
        self.row: dict[str, Any] = {}
        self.pruned = False
        self._place = [0, 0]
        self._arguments = ["train", *arguments]
        self._environment = environment
        self.start()

    def start(self) -> None:
        """Start the process; it resumes if an earlier one was killed."""
        with self.log.open("ab") as file:
            self._process = start(
                self._arguments,
                self._environment,
                stdout=file,
                stderr=subprocess.STDOUT,
                process_group=0,  # only the sweep gets Ctrl-C, and passes it on
            )

    def poll(self) -> int | None:
        """Read all new rows, and return the exit code of the process, or None while it runs."""
        code = self._process.poll()
        more = True
        while more:
            try:
                read = read_rows(self.run.path / "metrics.jsonl", self._place)
            except DamagedError:  # the process itself will report it and end
                return code
            self._place, more = read["place"], read["more"]
            if read["afresh"]:
                self.values, self.row = [], {}
            for row in read["rows"]:
                self.row |= row
                if self.metric in row:
                    value = row[self.metric]
                    self.values.append(value if isinstance(value, int | float) else math.nan)
        return code

    @property
    def best(self) -> float | None:
        """The lowest value so far."""
        return min(filter(math.isfinite, self.values), default=None)

    def value(self) -> float | None:
        """The lowest value of a run that has finished, even if some of its rows are lost."""
        recorded = None
        with suppress(DamagedError):
            recorded = self.run.read("summary.json").get(f"best/{self.metric}")
        known = (value for value in (self.best, recorded) if isinstance(value, int | float))
        return min(known, default=None)

    def prune(self) -> None:
        """Stop the trial for good."""
        self.pruned = True
        self.stop()

    def stop(self) -> None:
        """Ask the process to save a checkpoint and end."""
        self._process.send_signal(signal.SIGTERM)

    def wait(self) -> None:
        self._process.wait()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def out_of_room(self, code: int) -> bool:
        """Whether a process that exited with `code` failed because of a full or failing disk."""
        reason = str(self.status().get("reason"))
        # A process that could not even write its status had no room.
        return code == 2 and (reason.startswith(MachineError.__name__) or reason == DIED)

    def what_failed(self, code: int) -> str:
        """Why a process exited with `code`, in one line."""
        if code < 0:
            return f"killed by {name_of(-code)}"
        if code - 128 in SIGNALS:
            return f"stopped by {name_of(code - 128)}"
        if code == 2 and (sentence := told_error(self._said())):
            return " ".join(sentence.split())
        return str(self.status().get("reason") or f"exit code {code}")

    def status(self) -> dict[str, Any]:
        """The status of its run; empty if it cannot be read, so that other trials continue."""
        try:
            return self.run.status()
        except DamagedError:
            return {}

    def _said(self) -> str:
        """The end of the process's output, as far as it can be read."""
        try:
            with opened(self.log) as file:
                file.seek(max(os.fstat(file.fileno()).st_size - TAIL, 0))
                return file.read().decode("utf-8", "replace")
        except (FileNotFoundError, DamagedError):
            return ""
