"""Runs whose processes are killed at random moments, from the first import to the last file: each
goes on bit for bit, and nobody writes while a process of before is alive."""

import contextlib
import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
from journey import LIMIT, TIMES, is_running, start
from test_preparing import children, large, sums, undisturbed  # noqa: F401 - fixtures
from test_preparing import start as start_preparing

from faults.test_files import assert_same_run
from faults.test_processes import TWO, workers
from lmkit.run import Run

pytestmark = pytest.mark.faults
KILLS = 40  # of each kind of run; 20 of a preparation


def seeds(number: int) -> list:
    """The first in every run of the tests, the others where there is time."""
    return [pytest.param(seed, marks=pytest.mark.slow if seed else ()) for seed in range(number)]


def kill(*pids: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def lives(settings, tmp_path_factory) -> dict[str, tuple[list[str], Path, float]]:
    """Command line, run and duration of undisturbed runs of one and two processes."""
    found = {}
    for name, more in (("one", ()), ("two", TWO)):
        place = tmp_path_factory.mktemp(name)
        sizes = ("data.batch_size=16", "trainer.max_epochs=2")
        arguments = ["train", *settings, *sizes, *more, "run_id=cut"]
        began = time.monotonic()
        _, err = (process := start(*arguments, cwd=place)).communicate(timeout=LIMIT)
        assert process.returncode == 0, err
        found[name] = arguments, place / "outputs" / "tiny" / "cut", time.monotonic() - began
    return found


def second_writer(process: subprocess.Popen[str], run: Path, orphans: list[int]) -> None:
    """Wait until `process` holds the run, or has ended; by then no orphan may be running."""
    while process.poll() is None:
        with contextlib.suppress(OSError):
            if f"process {process.pid} on" in (run / ".lock").read_text():
                break
        time.sleep(0.005)
    alive = [pid for pid in orphans if is_running(pid)]
    assert not alive, (alive, process.poll())


def summary(run: Path) -> dict:
    values = json.loads((run / "summary.json").read_text())
    return {key: value for key, value in values.items() if not TIMES.search(key)} | {
        "peak_memory_bytes": 0
    }


def killed_and_resumed(name: str, seed: int, lives: dict, place: Path) -> None:
    arguments, whole, duration = lives[name]
    draw = random.Random(f"{name} {seed}")
    process = start(*arguments, cwd=place)
    moment, who = draw.uniform(0, duration), draw.choice(["parent", "rank 0", "rank 1", "all"])
    time.sleep(moment)
    ranks = workers(process)
    victims = {"rank 0": ranks[:1], "rank 1": ranks[1:], "all": [process.pid, *ranks]}
    kill(*victims.get(who, [process.pid]))
    run = place / "outputs" / "tiny" / "cut"
    if process.pid in victims.get(who, [process.pid]):
        process.wait(timeout=LIMIT)
        again = start(*arguments, cwd=place)
        process.communicate(timeout=LIMIT)
        second_writer(again, run, ranks)
        process = again
    _, err = process.communicate(timeout=LIMIT)
    assert process.returncode == 0, (moment, who, err)
    assert_same_run(run, whole)
    assert summary(run) == summary(whole)
    assert not Run(run).held()
    assert json.loads((run / "status.json").read_text())["status"] == "finished"
    assert not any(is_running(pid) for pid in ranks)


@pytest.mark.parametrize("seed", seeds(KILLS))
def test_one_process(lives, tmp_path, seed):
    killed_and_resumed("one", seed, lives, tmp_path)


@pytest.mark.parametrize("seed", seeds(KILLS))
def test_two_processes_and_their_parent(lives, tmp_path, seed):
    killed_and_resumed("two", seed, lives, tmp_path)


@pytest.mark.parametrize("seed", seeds(KILLS // 2))
def test_a_preparation(large, tmp_path, undisturbed, seed):  # noqa: F811 - fixtures
    draw = random.Random(seed)
    place = tmp_path / "store"
    process = start_preparing(large, place)
    time.sleep(draw.uniform(0, 6))
    found = children(process.pid)
    victims = draw.choice([[process.pid], found[-1:], [process.pid, *found]])
    kill(*victims)
    process.communicate(timeout=LIMIT)
    again = start_preparing(large, place)
    out, err = again.communicate(timeout=LIMIT)
    assert again.returncode == 0, err
    assert sums(place) | {"hash": out} == undisturbed
    assert not list(place.rglob("*.tmp"))
