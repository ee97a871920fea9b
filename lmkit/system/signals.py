"""Handles Ctrl-C, SIGTERM and a cluster's SIGUSR1, from start-up to the last file, so that no step
is lost."""

import contextlib
import os
import signal
import socket
import threading
import time
from types import FrameType, TracebackType
from typing import Any, Self

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
FOLLOWS = "LMKIT_FOLLOWS"  # in the environment of a process that is to end with its parent
POLL = 0.2  # seconds between two checks of the parent
ORPHAN = 10  # seconds in which a process can save its state after its parent has died
PATIENCE = 5.0  # seconds for which a main thread in C code may leave a signal unhandled
HEARD = b"\0"  # no signal has this number


def follow_parent(parent: int) -> None:
    """End this process when `parent`, which started it, dies or has died.

    It gets SIGTERM, and ORPHAN seconds later the kernel ends it, whatever it waits for.
    """
    # A launcher may have blocked these signals.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (*SIGNALS, signal.SIGALRM))

    def watch() -> None:
        # PR_SET_PDEATHSIG misses a parent that is dead already, and fires when the thread that
        # started this process ends, even if the parent lives.
        while os.getppid() == parent:
            time.sleep(POLL)
        signal.alarm(ORPHAN)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True, name="follow parent").start()


def is_alive(pid: int) -> bool:
    """Whether a process with this id exists on this machine."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def name_of(signum: int) -> str:
    """The name of a signal, such as `SIGKILL`; `signal 60` if it has none."""
    try:
        return signal.Signals(signum).name
    except ValueError:
        return f"signal {signum}"


class Stopped(BaseException):
    """A signal ends the work; as with KeyboardInterrupt, no `except Exception` catches it."""

    def __init__(self, signum: int) -> None:
        self.name = name_of(signum)
        self.signum = signum
        self.exit_code = 128 + signum  # 130 for SIGINT, 143 for SIGTERM
        self.result: Any = None  # the result of what was done before
        super().__init__(f"stopped by {self.name}")


class StopSignals:
    """A context in which SIGNALS raise `Stopped`, or wait while `deferred`.

    While deferred, the first signal is only noted in `received`, so that training can stop between
    two steps; a second Ctrl-C raises at once, and for a third the kernel ends the process. If the
    main thread does not return from C code within PATIENCE seconds, the process ends without
    `Stopped`.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.deferred = False
        self._before: dict[int, signal._HANDLER] = {}
        self._wakeup: socket.socket | None = None
        self._wakeup_before = -1

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {signum: signal.getsignal(signum) for signum in SIGNALS}
            # Python's C handler writes each signal's number here at once; `_handle` writes HEARD.
            self._wakeup, listening = socket.socketpair()
            self._wakeup.setblocking(False)
            threading.Thread(target=self._listen, args=(listening,), daemon=True).start()
            number = self._wakeup.fileno()
            self._wakeup_before = signal.set_wakeup_fd(number, warn_on_full_buffer=False)
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
        if self._wakeup:
            signal.set_wakeup_fd(self._wakeup_before, warn_on_full_buffer=False)
            self._wakeup.close()
            self._wakeup = None

    def install(self) -> None:
        """Install the handlers, also again: Lightning replaces SIGTERM's when it starts."""
        for signum in self._before:
            signal.signal(signum, self._handle)

    def _listen(self, listening: socket.socket) -> None:
        """Runs in a thread: ends the process if the main thread leaves a signal unhandled."""
        unheard: list[int] = []
        with listening:
            while True:
                listening.settimeout(PATIENCE if unheard else None)
                try:
                    number = listening.recv(1)
                except TimeoutError:
                    self._end(unheard)
                    continue
                if not number:
                    return
                if number == HEARD:
                    unheard.clear()
                elif number[0] in SIGNALS:
                    unheard.append(number[0])

    def _end(self, unheard: list[int]) -> None:
        """End the process, unless the stop is deferred or somebody else handles the signal."""
        first = self.received is None
        if self.deferred and unheard.count(signal.SIGINT) <= first:
            return
        if signal.getsignal(unheard[0]) == self._handle:
            stopped = Stopped(unheard[0])
            os.write(2, f"\n{stopped}, in a wait that nothing else can end\n".encode())
            os._exit(stopped.exit_code)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self._wakeup:
            with contextlib.suppress(BlockingIOError):
                self._wakeup.send(HEARD)
        first = self.received is None
        self.received = self.received or signum
        if first and self.deferred:
            # Not `print`: a handler may run in the middle of a write to the same buffer.
            os.write(2, b"\nstopping after this step; Ctrl-C again stops at once\n")
        elif first or not self.deferred or signum == signal.SIGINT:
            # Not the first: what that one raised was lost, as in a destructor, or nobody waits.
            if not first:
                for each in self._before:
                    signal.signal(each, signal.SIG_DFL)
            raise Stopped(signum)
