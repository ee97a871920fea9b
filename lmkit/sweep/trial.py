"""One training of a sweep: a process of `lmkit train`, followed through what it writes."""

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
    """`values` are those of `metric` after each validation so far, `row` what was logged last."""

    def __init__(
        self,
        run: Run,
        arguments: Sequence[str],
        metric: str,
        log: Path,
        environment: Mapping[str, str],
    ) -> None:
        """`arguments` train `run`; what the process prints goes to the end of `log`."""
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
        """Begin, or go on where a process that was killed has left it."""
        with self.log.open("ab") as file:
            self._process = start(
                self._arguments,
                self._environment,
                stdout=file,
                stderr=subprocess.STDOUT,
                process_group=0,  # Ctrl-C is the sweep's to pass on
            )

    def poll(self) -> int | None:
        """The exit code of a process that has ended; None before. Reads what there is to read."""
        code = self._process.poll()
        more = True
        while more:
            try:
                piece = read_rows(self.run.path / "metrics.jsonl", self._place)
            except DamagedError:  # which the process itself will say, and end
                return code
            self._place, more = piece["place"], piece["more"]
            if piece["afresh"]:
                self.values, self.row = [], {}
            for row in piece["rows"]:
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
        """The lowest value of a run that has finished, also where rows of it have been lost."""
        recorded = None
        with suppress(DamagedError):
            recorded = self.run.read("summary.json").get(f"best/{self.metric}")
        found = (value for value in (self.best, recorded) if isinstance(value, int | float))
        return min(found, default=None)

    def prune(self) -> None:
        """Stop it for good."""
        self.pruned = True
        self.stop()

    def stop(self) -> None:
        """Let it save its place and end."""
        self._process.send_signal(signal.SIGTERM)

    def wait(self) -> None:
        self._process.wait()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def out_of_room(self, code: int) -> bool:
        """Whether a process that exited with `code` has met a disk that takes no more."""
        reason = str(self.status().get("reason"))
        # Who cannot even write how it ended has no room.
        return code == 2 and (reason.startswith(MachineError.__name__) or reason == DIED)

    def what_failed(self, code: int) -> str:
        """Why a process that exited with `code` has, in a line."""
        if code < 0:
            return f"killed by {name_of(-code)}"
        if code - 128 in SIGNALS:
            return f"stopped by {name_of(code - 128)}"
        if code == 2 and (sentence := told_error(self._said())):
            return " ".join(sentence.split())
        return str(self.status().get("reason") or f"exit code {code}")

    def status(self) -> dict[str, Any]:
        """How its run stands; nothing where that cannot be read: it spoils no other trial."""
        try:
            return self.run.status()
        except DamagedError:
            return {}

    def _said(self) -> str:
        """The end of what the process has printed, as far as it can be read."""
        try:
            with opened(self.log) as file:
                file.seek(max(os.fstat(file.fileno()).st_size - TAIL, 0))
                return file.read().decode("utf-8", "replace")
        except (FileNotFoundError, DamagedError):
            return ""
