"""Ctrl-C, SIGTERM and a cluster's SIGUSR1, from start-up to the last file written, without losing
a step."""

import ctypes
import os
import signal
import sys
import threading
from types import FrameType, TracebackType
from typing import Any, Self

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
PR_SET_PDEATHSIG = 1
FOLLOWS = "LMKIT_FOLLOWS"  # in the environment of a process that is to end with its parent


def follow_parent(parent: int | None = None) -> None:
    """Have this process get SIGTERM when the one that started it, `parent`, dies or has died."""
    if sys.platform == "linux":  # elsewhere it is left to itself
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)  # a launcher may have blocked them
    if parent is not None and os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGTERM)


def name_of(signum: int) -> str:
    """As in `SIGKILL`; `signal 60` for one that has no name of its own."""
    try:
        return signal.Signals(signum).name
    except ValueError:
        return f"signal {signum}"


class Stopped(BaseException):
    """The work ends because of a signal; like KeyboardInterrupt, no `except Exception` stops it."""

    def __init__(self, signum: int) -> None:
        self.name = name_of(signum)
        self.signum = signum
        self.exit_code = 128 + signum  # 130 for SIGINT, 143 for SIGTERM
        self.result: Any = None  # of what was done before
        super().__init__(f"stopped by {self.name}")


class StopSignals:
    """A context in which SIGNALS raise `Stopped`, or wait while `deferred`.

    While deferred, the first signal is only noted in `received`, for training to stop between
    two steps; a second Ctrl-C raises at once, and a third is the kernel's.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.deferred = False
        self._before: dict[int, signal._HANDLER] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {signum: signal.getsignal(signum) for signum in SIGNALS}
            self.install()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def install(self) -> None:
        """Take the signals (back: Lightning replaces SIGTERM's handler as it starts)."""
        for signum in self._before:
            signal.signal(signum, self._handle)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        first = self.received is None
        self.received = self.received or signum
        if first and self.deferred:
            # Not `print`: a handler may run inside a write to the same buffer.
            os.write(2, b"\nstopping after this step; Ctrl-C again stops at once\n")
        elif first or signum == signal.SIGINT:
            if not first:
                for each in self._before:
                    signal.signal(each, signal.SIG_DFL)
            raise Stopped(signum)
