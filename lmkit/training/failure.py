"""The record that a failed process of a run leaves for the process that started it."""

from __future__ import annotations

import json
import os
import socket
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from lmkit.system.files import write_atomically
from lmkit.system.redaction import redacted


@dataclass(frozen=True)
class Failure:
    """How a process of a run has ended, written for its parent."""

    rank: int
    what: str  # the error in words
    stack: str
    died: bool = False  # another try may succeed
    mistake: bool = False  # a UserError: `what` is the whole message, without a stack
    machine: bool = False  # a MachineError, which is a UserError too
    failed: bool = False  # a ResultError: `what` is the whole message here too
    signum: int = 0  # the signal that stopped it
    time: float = field(default_factory=time.time)
    process: str = field(default_factory=lambda: f"process {os.getpid()} on {socket.gethostname()}")

    def write(self, directory: Path) -> None:
        file = directory / f"rank-{self.rank}.failure.json"
        write_atomically(file, json.dumps(redacted(asdict(self))).encode())

    @classmethod
    def take(cls, directory: Path) -> list[Failure]:
        """Read all records in a directory, earliest first, and delete them."""
        failures = []
        for file in directory.glob("rank-*.failure.json"):
            failures.append(cls(**json.loads(file.read_text(encoding="utf-8"))))
            file.unlink()
        return sorted(failures, key=lambda failure: failure.time)
