"""Starts the processes of a run on this machine, stops them, and restarts them when one dies."""

from __future__ import annotations

import errno
import faulthandler
import logging
import multiprocessing
import os
import re
import sys
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO, cast

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from lmkit.errors import MachineError, ResultError, UserError, as_user_error, exit_code
from lmkit.run import Run
from lmkit.run.checkpoints import latest_checkpoint
from lmkit.system import hardware
from lmkit.system.allocator import keep_freed_memory
from lmkit.system.processes import launched
from lmkit.system.redaction import Redacting, redacted_output
from lmkit.system.rendezvous import meet
from lmkit.system.signals import SIGNALS, Stopped, StopSignals, follow_parent, name_of
from lmkit.system.switches import restored
from lmkit.training.failure import Failure
from lmkit.training.fit import work

log = logging.getLogger(__name__)

# The messages of a process that has lost the connection to another.
PEER_GONE = re.compile(
    r"onnection (closed|reset|refused)|closed by peer|Broken pipe|Timed out wait"
)


class WorkerError(RuntimeError):
    """A process of a run has raised an exception, or died without one, as `died` says."""

    def __init__(self, message: str, died: bool) -> None:
        super().__init__(message)
        self.died = died


def work_in_processes(run: Run, config: dict[str, Any]) -> None:
    """Train a run with one process per device, on prepared data; raises `Stopped`.

    When a process dies, as by a signal, all are started again from the last checkpoint, up to
    `config["restarts"]` times. An exception would only be raised again, so it ends the run.
    """
    with restored():
        _launch(run, config)


def _launch(run: Run, config: dict[str, Any]) -> None:
    # Lightning's own launcher would execute the command line once more in every process.
    os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = ",".join(s.name for s in SIGNALS)
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    launch = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=hardware.num_processes(config["trainer"]),
        run_id=run.id,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        monitor_interval=0.2,
    )
    for restarts in range(config["restarts"] + 1):
        newest = latest_checkpoint(run.path / "checkpoints")
        Failure.take(run.path / "logs")
        try:
            elastic_launch(launch, _worker)(run, config, newest)
        except SignalException as stopped:
            for child in multiprocessing.active_children():
                child.kill()  # a second signal came while they were ending
            raise Stopped(stopped.sigval) from None
        except ChildFailedError as error:
            failed = cause(run, error, launch.nproc_per_node)
            if not failed.died or restarts == config["restarts"]:
                raise failed from None
            left = f"{restarts + 1} of {config['restarts']}"
            log.warning("%s; starting again from the last checkpoint (%s)", failed, left)
        else:
            return


def _worker(run: Run, config: dict[str, Any], newest: Path | None) -> None:
    """The work of one process; writes a `Failure` for `cause` if it does not finish."""
    os.setpgrp()  # only the parent gets Ctrl-C, and passes it on once
    parent, started = multiprocessing.parent_process(), launched()
    assert parent
    assert parent.pid
    assert started
    follow_parent(parent.pid)
    rank, logs = started.rank, run.path / "logs"
    keep_freed_memory()
    with redacted_output():
        stream = log_to(run.path, rank)
        try:
            with StopSignals():
                meet(started, config["trainer"])
                work(run, config, newest)
        except Stopped as stopped:
            Failure(rank, str(stopped), "", signum=stopped.signum).write(logs)
            sys.stdout.flush()
            sys.stderr.flush()
            # A return would wait for the parent, which waits for this process to end.
            os._exit(stopped.exit_code)
        except BaseException as error:
            mistake, failed = as_user_error(error), isinstance(error, ResultError)
            what = (
                str(error) if failed else str(mistake or f"raised {type(error).__name__}: {error}")
            )
            failure = Failure(
                *(rank, what, traceback.format_exc()),
                mistake=mistake is not None,
                machine=isinstance(mistake, MachineError),
                failed=failed,
            )
            with suppress(OSError):  # a disk that is full
                failure.write(logs)
                traceback.print_exc(file=stream)
            # Not raised: torch would write an exception's text, unredacted, to $TMPDIR.
            sys.exit(exit_code(error))


def log_to(path: Path, rank: int) -> TextIO:
    """Send this process's warnings, and with ranks other than 0 all that it prints, to
    `logs/rank-<n>.log` of the run, which is returned."""
    file = path / "logs" / f"rank-{rank}.log"
    file.parent.mkdir(exist_ok=True)
    opened = file.open("a", buffering=1, encoding="utf-8")
    stream = cast(TextIO, Redacting(opened))
    faulthandler.enable(stream)
    handlers: list[logging.Handler] = [logging.StreamHandler()]
    if rank:
        os.dup2(stream.fileno(), sys.stdout.fileno())
        os.dup2(stream.fileno(), sys.stderr.fileno())
    else:
        handlers.append(logging.StreamHandler(stream))
    form = "%(levelname)s: %(message)s"
    logging.basicConfig(format=form, level=logging.WARNING, handlers=handlers, force=True)
    return stream


def cause(run: Run, error: ChildFailedError, number: int) -> WorkerError:
    """The failure of the process that failed first; the others fail later because they miss it."""
    failures = Failure.take(run.path / "logs")
    heard = {failure.rank for failure in failures}
    rank, failure = error.get_first_failure()
    code = failure.exitcode
    if rank not in heard:
        if (signum := -code if code < 0 else code - 128) in SIGNALS:  # too early to write a record
            raise Stopped(signum) from None
        if code == 2:  # a UserError, but a full disk had no room for its record
            full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(run.path / "logs"))
            raise as_user_error(full) from None  # type: ignore[misc]
        if code < 0:  # killed; the others were stopped because of it
            how = f"was killed by {name_of(-code)}"
            return WorkerError(f"rank {rank} (process {failure.pid}) {how}", died=True)
    first = next((failure for failure in failures if not PEER_GONE.search(failure.what)), None)
    if first and first.signum:
        raise Stopped(max(failure.signum for failure in failures)) from None
    if first and first.mistake:
        raise (MachineError if first.machine else UserError)(first.what) from None
    if first and first.failed:
        raise ResultError(first.what, None) from None
    if first:
        message = f"rank {first.rank} ({first.process}) {first.what}\n\n{first.stack.rstrip()}\n"
        return WorkerError(message, first.died)
    gone = [str(rank) for rank in range(number) if rank not in heard]
    return WorkerError(f"rank {', '.join(gone) or rank} died without a word", died=True)
