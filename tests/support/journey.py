"""A small training by the command line, in a real process, for tests that start from one."""

import json
import random
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

LIMIT = 240  # seconds for any one process
TIMES = re.compile(r"seconds|tokens_per_second")


@pytest.fixture(scope="session")
def text(tmp_path_factory) -> Path:
    """Documents by blank lines, of words that follow each other with some sense."""
    path = tmp_path_factory.mktemp("text") / "text.txt"
    draw = random.Random(0)
    words = ["the", "a", "cat", "dog", "sat", "ran", "on", "under", "mat", "and", "then", "slept"]
    paragraphs = [
        "\n".join(" ".join(draw.choices(words, k=draw.randint(3, 12))) for _ in range(4))
        for _ in range(120)
    ]
    path.write_text("\n\n".join(paragraphs) + "\n")
    return path


@pytest.fixture(scope="session")
def settings(text) -> list[str]:
    """A tiny model with dropout, carried state, clipping and a schedule; 3 epochs."""
    return [
        *("data=files", f"data.path={text}", "data.unit=paragraph", "tokenizer=characters"),
        *("data.batch_size=4", "data.bptt=16", "name=tiny", "scheduler=cosine"),
        *("model.embedding_size=12", "model.hidden_size=12", "model.dropout=0.3"),
        *("trainer.precision=32-true", "trainer.max_epochs=3", "trainer.log_every_n_steps=7"),
        *("callbacks.checkpoint.every_n_train_steps=10", "callbacks.samples.num_tokens=5"),
    ]


def start(*arguments: str, cwd: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "lmkit", *arguments],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def lmkit(*arguments: str, cwd: Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    with start(*arguments, cwd=cwd) as process:
        try:
            out, err = process.communicate(timeout=LIMIT)
        finally:
            process.kill()  # else a later test would be blamed for it
    assert process.returncode == code, err
    return subprocess.CompletedProcess(arguments, code, out, err)


def is_running(pid: int) -> bool:
    """Whether a process still does anything: a zombie does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


def rows(run: Path) -> list[dict]:
    """The rows of metrics.jsonl without what depends on the clock."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [
        {key: value for key, value in json.loads(line).items() if not TIMES.search(key)}
        for line in lines
    ]


@pytest.fixture(scope="session")
def finished(tmp_path_factory, settings) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """An undisturbed run and what it printed."""
    place = tmp_path_factory.mktemp("finished")
    done = lmkit("train", *settings, "run_id=whole", cwd=place)
    return place / "outputs" / "tiny" / "whole", done


def last(run: Path) -> dict:
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)


def wait_for_rows(process: subprocess.Popen[str], run: Path, number: int) -> None:
    """Until the process has written more rows of metrics than this."""
    deadline = time.monotonic() + LIMIT
    metrics = run / "metrics.jsonl"
    while not (metrics.exists() and metrics.read_bytes().count(b"\n") > number):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.005)


def assert_same_state(one: dict, other: dict) -> None:
    for name, tensor in one["state_dict"].items():
        assert torch.equal(tensor, other["state_dict"][name]), name
    for key, state in one["optimizer_states"][0]["state"].items():
        for name, value in state.items():
            assert torch.equal(value, other["optimizer_states"][0]["state"][key][name])
    assert one["lr_schedulers"] == other["lr_schedulers"]
    assert one["lmkit_task"]["tokens_seen"] == other["lmkit_task"]["tokens_seen"]
