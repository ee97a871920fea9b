"""Processes that torchrun or SLURM has started are one run, as those that lmkit starts."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from faulty import TWO, end
from journey import LIMIT, is_running, last, rows, wait_for_rows
from preparing import children

from lmkit.run import Run

pytestmark = pytest.mark.faults


def torchrun(*arguments: str, cwd: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc-per-node", "2", "-m", "lmkit", *arguments),
        ],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_under_torchrun_it_is_one_run(two, settings, tmp_path):
    process = torchrun("train", *settings, *TWO, cwd=tmp_path)
    out, err = process.communicate(timeout=LIMIT)
    assert process.returncode == 0, err
    (run,) = (tmp_path / "outputs" / "tiny").iterdir()
    assert rows(run) == rows(two)
    assert out.count("test/perplexity") == 1, "one rank reports"
    assert {file.name for file in (run / "logs").glob("*.log")} == {"rank-0.log", "rank-1.log"}


def test_a_mistake_under_torchrun_is_told_once(settings, tmp_path):
    (tmp_path / "outputs").write_text("in the way")
    process = torchrun("train", *settings, *TWO, cwd=tmp_path)
    _, err = process.communicate(timeout=LIMIT)
    assert process.returncode != 0
    assert err.count("error: cannot write the run directory") == 1


def test_the_agent_of_torchrun_is_killed(settings, tmp_path):
    process = torchrun("train", *settings, *TWO, "run_id=cut", cwd=tmp_path)
    run = tmp_path / "outputs" / "tiny" / "cut"
    wait_for_rows(process, run, 5)
    ranks = children(process.pid)
    assert len(ranks) == 2
    process.kill()
    process.communicate(timeout=LIMIT)
    deadline = time.monotonic() + LIMIT
    while any(map(is_running, ranks)):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert not Run(run).held()
    step = last(run)["global_step"]
    assert json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["step"] <= step


def slurm(rank: int, port: int, *arguments: str, cwd: Path) -> subprocess.Popen[str]:
    """A task of srun, by its environment; scontrol is a script that writes down what it is told."""
    bin_directory = cwd / "bin"
    bin_directory.mkdir(exist_ok=True)
    for name in ("srun", "scontrol"):
        (bin_directory / name).write_text(f'#!/bin/sh\necho "$@" >> {cwd}/{name}.txt\n')
        (bin_directory / name).chmod(0o755)
    environment = {
        **os.environ,
        **{"SLURM_JOB_ID": "4711", "SLURM_NTASKS": "2", "SLURM_PROCID": str(rank)},
        **{"SLURM_LOCALID": str(rank), "SLURM_NODEID": "0", "SLURM_NNODES": "1"},
        **{"SLURM_STEP_ID": "0", "SLURM_NODELIST": "127.0.0.1", "MASTER_PORT": str(port)},
        "PATH": f"{bin_directory}:{os.environ['PATH']}",
    }
    return subprocess.Popen(
        [sys.executable, "-m", "lmkit", *arguments],
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_under_slurm_it_is_one_run_and_goes_on_when_requeued(two, settings, tmp_path):
    def tasks() -> list[subprocess.Popen[str]]:
        port = free_port()
        return [slurm(rank, port, "train", *settings, *TWO, cwd=tmp_path) for rank in (0, 1)]

    processes = tasks()
    run = tmp_path / "outputs" / "tiny" / "slurm-4711"
    wait_for_rows(processes[0], run, 5)
    for process in processes:
        process.send_signal(signal.SIGUSR1)
    for process in processes:
        end(process, 128 + signal.SIGUSR1)
    assert (tmp_path / "scontrol.txt").read_text() == "requeue 4711\n"
    assert json.loads((run / "status.json").read_text())["reason"] == "SIGUSR1"
    for process in tasks():
        end(process, 0)
    assert rows(run) == rows(two)
