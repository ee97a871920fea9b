"""Which of a run's processes ended it, by what they say and how they exited."""

import signal
import threading
import time

import pytest
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from lmkit.errors import UserError
from lmkit.run import Run
from lmkit.system.signals import Stopped
from lmkit.training.callbacks import Watchdog
from lmkit.training.failure import Failure
from lmkit.training.workers import WorkerError, cause

RAISED = Failure(1, "raised ValueError: no", "stack", time=1.0)
PEER_GONE = Failure(0, "raised RuntimeError: Connection closed by peer", "stack", time=2.0)
STOPPED = Failure(0, "stopped by SIGTERM", "", signum=signal.SIGTERM, time=2.0)
MISTAKE = Failure(1, "a mistake", "stack", mistake=True, time=1.0)


def caused(path, rank: int, code: int, *failures: Failure) -> WorkerError:
    """`rank` was the first that torch saw to fail, with this exit code."""
    (path / "logs").mkdir(exist_ok=True)
    for failure in failures:
        failure.write(path / "logs")
    seen = ProcessFailure(local_rank=rank, pid=7, exitcode=code, error_file="none")
    return cause(Run(path), ChildFailedError("work", {rank: seen}), 2)


@pytest.mark.parametrize(
    ("rank", "code", "failures", "message", "died"),
    [
        (1, -9, [], "rank 1 (process 7) was killed by SIGKILL", True),
        (1, -9, [STOPPED], "rank 1 (process 7) was killed by SIGKILL", True),  # torch stops rank 0
        (1, -9, [PEER_GONE], "rank 1 (process 7) was killed by SIGKILL", True),
        (0, 1, [PEER_GONE], "rank 1 died without a word", True),
        (1, 1, [RAISED, STOPPED], "rank 1 (process ", False),
        (1, 1, [RAISED, PEER_GONE], "rank 1 (process ", False),
    ],
)
def test_the_first_is_to_blame(tmp_path, rank, code, failures, message, died):
    error = caused(tmp_path, rank, code, *failures)
    assert str(error).startswith(message)
    assert error.died == died
    assert not list((tmp_path / "logs").iterdir())


@pytest.mark.parametrize(
    ("code", "failures", "name"),
    [
        (143, [STOPPED], "SIGTERM"),
        (143, [], "SIGTERM"),  # in a wait that nothing else could end
        (130, [], "SIGINT"),
        (-signal.SIGTERM, [], "SIGTERM"),  # before it could hear signals
    ],
)
def test_a_stop_is_a_stop(tmp_path, code, failures, name):
    with pytest.raises(Stopped, match=f"stopped by {name}"):
        caused(tmp_path, 0, code, *failures)


def test_a_mistake_is_told_alone(tmp_path):
    with pytest.raises(UserError, match=r"^a mistake$"):
        caused(tmp_path, 1, 1, MISTAKE, STOPPED)


def test_a_watchdog_whose_place_cannot_be_written_goes_on(tmp_path):
    """As on a full disk, which ends the training in a sentence of its own."""
    watchdog = Watchdog(seconds=30)
    watchdog._position, watchdog._moved = (1, 0, 0), time.monotonic()
    threading.Timer(1.5, watchdog._ended.set).start()  # after one look
    watchdog._watch(tmp_path / "gone", 0, 1)
    assert not (tmp_path / "gone").exists()
