"""Runs that a fault is put into, of one process and of two."""

import os
import subprocess
import sys
import time
from pathlib import Path

import injected
import pytest
from journey import LIMIT, assert_same_state, is_running, last, lmkit, rows

TWO = ("trainer=ddp_cpu", "trainer.devices=2")


def begin(*arguments: str, cwd: Path, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, injected.__file__, *arguments],
        cwd=cwd,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def end(process: subprocess.Popen[str], code: int) -> str:
    _, err = process.communicate(timeout=LIMIT)
    assert process.returncode == code, err
    return err


def workers(process: subprocess.Popen[str]) -> list[int]:
    """Process ids by rank of a run in several processes."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            environment = (path / "environ").read_bytes()
        except (OSError, ValueError):
            continue
        if parent == process.pid and b"multiprocessing.spawn" in (path / "cmdline").read_bytes():
            found[int(path.name)] = environment
    return sorted(found)


@pytest.fixture(scope="session")
def two(settings, tmp_path_factory) -> Path:
    """An undisturbed run of two processes."""
    place = tmp_path_factory.mktemp("two")
    lmkit("train", *settings, *TWO, "run_id=whole", cwd=place)
    return place / "outputs" / "tiny" / "whole"


def nobody_writes_with(process: subprocess.Popen[str], run: Path, orphans: list[int]) -> None:
    """Wait until `process` holds the run, or has ended; by then no orphan may be running."""
    lock, holder = run / ".lock", f"process {process.pid} on"
    while process.poll() is None and not (lock.exists() and holder in lock.read_text()):
        time.sleep(0.005)
    assert not [pid for pid in orphans if is_running(pid)]


def assert_same_run(run: Path, whole: Path) -> None:
    assert rows(run) == rows(whole)
    assert_same_state(last(run), last(whole))
    assert (run / "samples.jsonl").read_text() == (whole / "samples.jsonl").read_text()
