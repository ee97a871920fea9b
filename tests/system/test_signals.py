"""Processes that wait in C, where no handler of Python runs: what ends them all the same."""

import signal
import subprocess
import sys
import time

import pytest
from journey import is_running

# A mutex that is locked twice waits for ever; a signal does not interrupt it (POSIX).
DEAF = """
import ctypes, os, signal, subprocess, sys, threading, time
from lmkit.system import signals
from lmkit.system.signals import Stopped, StopSignals, follow_parent

def deaf():
    mutex, library = ctypes.create_string_buffer(256), ctypes.CDLL(None)
    library.pthread_mutex_lock(mutex)
    sys.setswitchinterval(1000)  # this thread lets others run as it enters C, not before
    entering = threading.Event()
    threading.Thread(target=lambda: (entering.wait(), print("ready", flush=True))).start()
    entering.set()
    library.pthread_mutex_lock(mutex)
"""


def python(source: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", DEAF + source, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def terminated(process: subprocess.Popen[str], signum: int = signal.SIGTERM) -> tuple:
    """What a process that says when it is ready prints after a signal, and its exit code."""
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signum)
    return *process.communicate(timeout=30), process.returncode


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_that_the_main_thread_does_not_hear_ends_the_process(signum, code):
    process = python("signals.PATIENCE = 0.3\nwith StopSignals(): deaf()")
    _, err, ended = terminated(process, signum)
    name = signal.Signals(signum).name
    assert err == f"\nstopped by {name}, in a wait that nothing else can end\n"
    assert ended == code


def test_while_training_it_takes_a_second_ctrl_c():
    """The first may wait for the end of a step, whose state is to be saved."""
    process = python(
        "signals.PATIENCE = 0.3\nwith StopSignals() as stop:\n    stop.deferred = True\n    deaf()"
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=1.5)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) == 130
    process.communicate()


def test_a_signal_that_is_heard_late_is_heard_once():
    """Cleaning up may take longer than a main thread may be deaf."""
    process = python(
        "signals.PATIENCE = 0.3\ntry:\n    with StopSignals():\n"
        "        print('ready', flush=True)\n"
        "        try:\n            time.sleep(30)\n        finally:\n            time.sleep(1)\n"
        "except Stopped as stopped:\n    sys.exit(7)"
    )
    assert terminated(process) == ("", "", 7)


def test_another_s_handler_is_left_to_itself():
    """As torch's agent has while it ends the processes of a run."""
    process = python(
        "signals.PATIENCE = 0.1\nwith StopSignals():\n"
        "    signal.signal(signal.SIGTERM, lambda *_: print('mine', flush=True))\n"
        "    print('ready', flush=True)\n    time.sleep(1.5)"
    )
    assert terminated(process) == ("mine\n", "", 0)


CHILD = (
    "signals.ORPHAN = 1\nsignal.signal(signal.SIGTERM, lambda *_: None)\nfollow_parent({})\ndeaf()"
)
PARENT = f"""
child = subprocess.Popen([sys.executable, "-c", {DEAF + CHILD!r}.format(os.getpid())])
print(child.pid, flush=True)
child.wait()
"""


def test_an_orphan_ends_whatever_it_waits_for():
    parent = python(PARENT)
    child = int(parent.stdout.readline())
    assert parent.stdout.readline() == "ready\n"
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 30
    while is_running(child):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    parent.communicate()


def test_a_parent_that_is_dead_already_is_noticed():
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    process = python(f"follow_parent({dead.pid})\ntime.sleep(30)")
    process.communicate(timeout=20)
    assert process.returncode == -signal.SIGTERM
