"""Runs whose processes are killed at random moments, from the first import to the last file: each
goes on bit for bit, and nobody writes while a process of before is alive."""

import contextlib
import functools
import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from faulty import TWO, assert_same_run, nobody_writes_with, workers
from journey import LIMIT, TIMES, is_running, start
from preparing import children, start_preparing, sums

from lmkit.run import Run

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1200)]
PATIENCE = 4 * LIMIT
KILLS = 40  # of each kind of run; a preparation has 20, the first in every run of the tests


def kill(*pids: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def lived(settings, tmp_path_factory) -> Callable[[str], tuple[list[str], Path, float]]:
    """Command line, run and seconds of an undisturbed run of one or two processes."""

    @functools.cache
    def live(number: str) -> tuple[list[str], Path, float]:
        place = tmp_path_factory.mktemp(number)
        sizes = ("data.batch_size=32", "trainer.max_epochs=2")  # 46 updates
        more = TWO if number == "two" else ()
        arguments = ["train", *settings, *sizes, *more, "run_id=cut"]
        began = time.monotonic()
        end(start(*arguments, cwd=place))
        return arguments, place / "outputs" / "tiny" / "cut", time.monotonic() - began

    return live


def end(process: subprocess.Popen[str], said: object = "") -> None:
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, (said, err)


def summary(run: Path) -> dict:
    values = json.loads((run / "summary.json").read_text())
    return {k: v for k, v in values.items() if not (TIMES.search(k) or k == "peak_memory_bytes")}


def killed_and_resumed(lived: tuple[list[str], Path, float], seed: int, place: Path) -> None:
    arguments, whole, seconds = lived
    draw = random.Random(seed)
    process = start(*arguments, cwd=place)
    moment, who = draw.uniform(0, seconds), draw.choice(["parent", "rank 0", "rank 1", "all"])
    time.sleep(moment)
    ranks = workers(process)
    victims = {"rank 0": ranks[:1], "rank 1": ranks[1:], "all": [process.pid, *ranks]}
    chosen = victims.get(who) or [process.pid]
    kill(*chosen)
    run = place / "outputs" / "tiny" / "cut"
    if process.pid in chosen:
        process.wait(timeout=PATIENCE)
        again = start(*arguments, cwd=place)
        nobody_writes_with(again, run, ranks)
        process.communicate(timeout=PATIENCE)
        process = again
    end(process, (moment, who))
    assert_same_run(run, whole)
    assert summary(run) == summary(whole)
    assert not Run(run).held()
    assert Run(run).status()["status"] == "finished"
    assert not [pid for pid in ranks if is_running(pid)]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(KILLS))
def test_one_process(lived, tmp_path, seed):
    killed_and_resumed(lived("one"), seed, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(KILLS))
def test_two_processes_and_their_parent(lived, tmp_path, seed):
    killed_and_resumed(lived("two"), seed, tmp_path)


@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in range(1, 20))]
)
def test_a_preparation(large, tmp_path, undisturbed, seed):
    draw = random.Random(seed)
    place = tmp_path / "store"
    process = start_preparing(large, place)
    time.sleep(draw.uniform(0, 6))
    found = children(process.pid)
    victims = draw.choice([[process.pid], found[-1:], [process.pid, *found]])
    kill(*victims)
    process.communicate(timeout=PATIENCE)
    again = start_preparing(large, place)
    out, err = again.communicate(timeout=PATIENCE)
    assert again.returncode == 0, err
    assert sums(place) | {"hash": out} == undisturbed
    assert not list(place.rglob("*.tmp"))
