"""What came of the process of a trial, in a line."""

import os
import signal

import pytest

from lmkit.run import Run
from lmkit.trial import TrialProcess


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
