"""What came of the process of a trial, in a line."""

import os
import signal
from pathlib import Path

import pytest

from lmkit.run import Run
from lmkit.sweep.trial import TrialProcess


@pytest.fixture(scope="module")
def process(tmp_path_factory) -> TrialProcess:
    """One that has ended at a mistake."""
    place = tmp_path_factory.mktemp("trial")
    log = place / "log.txt"
    trial = TrialProcess(Run(place / "run"), ["model.hiden_size=3"], "val/nll", log, os.environ)
    trial.wait()
    return trial


def test_a_mistake_is_told_in_a_line(process):
    code = process.poll()
    assert code == 2
    why = process.what_failed(code)
    assert "model.hiden_size" in why
    assert "hidden_size" in why
    assert "\n" not in why


def test_what_a_run_came_to_outlives_its_rows_and_damage_is_its_own(process, monkeypatch, tmp_path):
    monkeypatch.setattr(process, "values", [3.0, 2.5])
    monkeypatch.setattr(process, "run", Run(tmp_path))
    assert process.value() == 2.5
    process.run.write("summary.json", {"best/val/nll": 2.0})
    assert process.value() == 2.0
    for name in ("summary.json", "status.json"):
        (process.run.path / name).write_text("[]")
    assert process.value() == 2.5
    assert process.status() == {}
    assert not process.out_of_room(2)


@pytest.mark.parametrize("harm", [Path.unlink, lambda log: (log.unlink(), os.mkfifo(log))])
def test_a_log_that_cannot_be_read_is_no_reason(process, harm, monkeypatch, tmp_path):
    monkeypatch.setattr(process, "log", log := tmp_path / "log.txt")
    log.write_text("x" * 10_000 + "\nerror: a\nb")
    assert process.what_failed(2) == "a b"
    harm(log)
    assert process.what_failed(2) == "exit code 2"


@pytest.mark.parametrize(
    ("code", "why"),
    [
        (-signal.SIGKILL, "killed by SIGKILL"),
        (-60, "killed by signal 60"),
        (128 + signal.SIGTERM, "stopped by SIGTERM"),
        (255, "exit code 255"),
        (1, "exit code 1"),
    ],
)
def test_an_exit_code_in_words(process, code, why):
    assert process.what_failed(code) == why
