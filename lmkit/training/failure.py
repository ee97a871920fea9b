"""How a process of a run has ended, told to the one that started it."""

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
    """How a process of a run has ended, for its parent: `died` if another try may do better,
    `signum` if it was stopped."""

    rank: int
    what: str
    stack: str
    died: bool = False
    mistake: bool = False  # the user's: what says it all
    machine: bool = False  # of which that of the machine
    failed: bool = False  # what was to come of the work did not: the same
    signum: int = 0
    time: float = field(default_factory=time.time)
    process: str = field(default_factory=lambda: f"process {os.getpid()} on {socket.gethostname()}")

    def write(self, directory: Path) -> None:
        file = directory / f"rank-{self.rank}.failure.json"
        write_atomically(file, json.dumps(redacted(asdict(self))).encode())

    @classmethod
    def take(cls, directory: Path) -> list[Failure]:
        """All that have been written, the earliest first; they are gone afterwards."""
        found = []
        for file in directory.glob("rank-*.failure.json"):
            found.append(cls(**json.loads(file.read_text(encoding="utf-8"))))
            file.unlink()
        return sorted(found, key=lambda failure: failure.time)
