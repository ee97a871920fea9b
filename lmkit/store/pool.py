"""A pool of processes that do jobs one by one; the first failure ends all, and names its job."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import signal
import sys
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

from lmkit.corpus import Source
from lmkit.corpus.source import Piece
from lmkit.errors import UserError, as_user_error
from lmkit.store.meter import Advance, Meter
from lmkit.system.signals import SIGNALS, follow_parent, name_of

# Seconds that a process has to clean up after itself.
PATIENCE = 5.0


@dataclass(frozen=True)
class Job:
    """The work of one process on a piece of a split; `what` says in messages what it makes."""

    split: str
    index: int
    piece: Piece
    what: str = "shard"

    @property
    def num_bytes(self) -> int:
        """The size of its piece on disk, by which progress is measured."""
        return self.piece.num_bytes

    def __str__(self) -> str:
        return f"{self.what} {self.index} of {self.split}"


def jobs_of(source: Source, split: str, what: str = "shard") -> list[Job]:
    """One job for each piece of a split, in order."""
    return [Job(split, index, piece, what) for index, piece in enumerate(source.pieces(split))]


Work = Callable[[Any, Advance], Any]


def num_cores() -> int:
    """The number of cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def run_jobs(work: Work, jobs: Sequence[Job], workers: int, meter: Meter) -> None:
    """Call `work(job, advance)` for every job, in `workers` spawned processes or in this one.

    Raises UserError if a job does or its process dies, and ends all other processes.
    """
    if min(workers, len(jobs)) < 2:
        for job in jobs:
            work(job, meter.advance)
            meter.finish(job.num_bytes)
        return
    with contextlib.closing(_Pool(work, min(workers, len(jobs)))) as pool:
        pool.run(jobs, meter)


class _Worker:
    """A process of the pool, and the job that it is doing."""

    def __init__(self, work: Work) -> None:
        context = multiprocessing.get_context("spawn")  # a fork would copy threads' locks
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, work, os.getpid()), daemon=True)
        self.process.start()
        theirs.close()
        self.job: Job | None = None

    def give(self, job: Job) -> None:
        self.job = job
        with contextlib.suppress(OSError):  # it has died, which `receive` reports
            self.connection.send(job)

    def receive(self) -> tuple[str, Any]:
        try:
            kind, value = self.connection.recv()
            return kind, value
        except (EOFError, OSError):
            self.process.join(PATIENCE)
            code = self.process.exitcode or 0
            how = f"was killed by {name_of(-code)}" if code < 0 else f"exited with {code}"
            raise UserError(
                f"{self.job}: the process that prepared it {how}; what is whole stays, so the same "
                "command goes on (with less memory for workers=1)"
            ) from None


class _Pool:
    def __init__(self, work: Work, number: int) -> None:
        self.workers: list[_Worker] = []
        try:
            with _held_back():
                for _ in range(number):
                    self.workers.append(_Worker(work))
        except BaseException:
            self.close()
            raise

    def run(self, jobs: Sequence[Job], meter: Meter) -> None:
        waiting = deque(jobs)
        for worker in self.workers:
            worker.give(waiting.popleft())
        busy = {worker.connection: worker for worker in self.workers}
        while busy:
            for connection in wait(list(busy)):
                assert isinstance(connection, Connection)
                worker = busy[connection]
                kind, value = worker.receive()
                assert worker.job is not None
                if kind == "advance":
                    meter.advance(value)
                elif kind == "mistake":
                    raise UserError(value)
                elif kind == "error":
                    raise RuntimeError(f"{worker.job}: {value}")
                else:
                    meter.finish(worker.job.num_bytes)
                    if waiting:
                        worker.give(waiting.popleft())
                    else:
                        worker.job = None
                        del busy[connection]

    def close(self) -> None:
        """End every process."""
        with _held_back():
            for worker in self.workers:
                worker.connection.close()  # a process without a job ends because of this
                if worker.job:
                    worker.process.terminate()
            for worker in self.workers:
                worker.process.join(PATIENCE)
                worker.process.kill()
                worker.process.join()


@contextlib.contextmanager
def _held_back() -> Iterator[None]:
    """Hold signals back until the block ends, also in the processes that it starts."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _serve(connection: Connection, work: Work, parent: int) -> None:
    """What a process of the pool runs: it does one job after another until there are no more."""
    for signum in SIGNALS:  # Ctrl-C reaches all processes of a terminal: the parent acts on it
        signal.signal(signum, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _leave)
    follow_parent(parent)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # there is a process for each core already
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    with contextlib.suppress(EOFError, OSError):
        while os.getppid() == parent:
            job = connection.recv()
            connection.send(_outcome(work, job, connection))


def _outcome(work: Work, job: Job, connection: Connection) -> tuple[str, Any]:
    try:
        work(job, lambda amount: connection.send(("advance", amount)))
    except Exception as error:
        if mistake := as_user_error(error):
            return "mistake", str(mistake)
        return "error", f"{type(error).__name__}: {error}\n\n{traceback.format_exc().rstrip()}"
    return "done", None


def _leave(signum: int, frame: object) -> None:
    sys.exit(128 + signum)  # runs every `finally` on its way out
