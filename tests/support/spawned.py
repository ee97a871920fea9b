"""What the processes that tests spawn do; they import this file, and so no torch."""

import os
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from lmkit.corpus import Jsonl
from lmkit.errors import UserError
from lmkit.run import Run


class Bad(Jsonl):
    """Does what `how` says at a file."""

    how: Callable[[], None]

    def _records(self, span: Any) -> Any:
        if span.name == "007.jsonl":
            type(self).how()
        return super()._records(span)


class Dies(Bad):
    def how() -> None:  # type: ignore[misc]
        os.kill(os.getpid(), signal.SIGKILL)


class Raises(Bad):
    def how() -> None:  # type: ignore[misc]
        raise ZeroDivisionError("a defect")


class Mistaken(Bad):
    def how() -> None:  # type: ignore[misc]
        raise UserError("007.jsonl: the text is wrong")


class Mark:
    """A job."""

    def __init__(self, file: Path, num_bytes: int) -> None:
        self.file, self.num_bytes = file, num_bytes


def mark(job: Mark, advance: Callable[[int], None]) -> None:
    with job.file.open("a") as file:
        file.write("once")
    advance(5)


def stay(run: Run, connection: Connection) -> None:
    """A process that a holder has started."""
    connection.send(run.path)
    connection.poll(60)
