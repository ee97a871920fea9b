"""metrics.jsonl, samples.jsonl, and wandb without a network, an account, or patience.

What a run tells its loggers from its start to its end: test_loggers.py.
"""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch.loggers import CSVLogger

from lmkit.run.jsonl import JsonLines
from lmkit.training.loggers import JsonlLogger, WandbLogger
from lmkit.training.loggers.tracker import Account, CSVTracker
from lmkit.training.loggers.wandb import logged_in


def read(path: Path) -> list:
    lines = path.read_text(encoding="utf-8").split("\n")
    assert lines.pop() == ""
    return [json.loads(line, parse_constant=pytest.fail) for line in lines]


class FakeTrainer:
    """What position() asks a trainer for."""

    global_step = 7
    current_epoch = 2

    class lightning_module:  # noqa: N801
        tokens_seen = 700


def test_a_row(tmp_path):
    logger = JsonlLogger(tmp_path, "run")
    logger.log_metrics({"val/nll": 1.5, "val/perplexity": math.inf, "epoch": 1.0}, 6)
    logger.follow(FakeTrainer())
    logger.log_metrics({"train/nll": math.nan, "epoch": 1.0}, 6)
    rows = read(tmp_path / "metrics.jsonl")
    for row in rows:
        assert 0 <= row.pop("seconds") < 60
    assert rows == [
        {"step": 6, "epoch": None, "tokens": None, "val/nll": 1.5, "val/perplexity": None},
        {"step": 7, "epoch": 2, "tokens": 700, "train/nll": None},
    ]


def test_a_resume_cuts_back_and_keeps_the_clock(tmp_path):
    logger = JsonlLogger(tmp_path)
    logger.log_metrics({"a": 1}, 1)
    saved = logger.state_dict() | {"seconds": 1000.0}
    logger.log_metrics({"a": 2}, 2)
    resumed = JsonlLogger(tmp_path)
    resumed.load_state_dict(saved)
    resumed.log_metrics({"a": 3}, 2)
    rows = read(tmp_path / "metrics.jsonl")
    assert [row["a"] for row in rows] == [1, 3]
    assert rows[1]["seconds"] >= 1000.0


def test_a_start_from_nothing_forgets_what_is_there(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"a": 1}\n{"cut of')
    logger = JsonlLogger(tmp_path)
    assert logger.state_dict()["length"] == 0
    logger.log_metrics({"a": 2}, 1)
    assert [row["a"] for row in read(tmp_path / "metrics.jsonl")] == [2]


@given(
    rows=st.lists(st.dictionaries(st.text(max_size=3), st.text() | st.floats(), max_size=2)),
    data=st.data(),
)
def test_lines_cut_anywhere(tmp_path_factory, rows, data):
    """Killed after any byte and continued at any saved row: the file holds whole rows only."""
    path = tmp_path_factory.mktemp("lines") / "a.jsonl"
    lines = JsonLines(path)
    lengths = [0]
    for row in rows:
        lines.append(row)
        lengths.append(lines.length)
    kept = data.draw(st.integers(0, len(rows)))
    if rows:
        os.truncate(path, data.draw(st.integers(lengths[kept], lengths[-1])))
    resumed = JsonLines(path)
    resumed.length = lengths[kept]
    resumed.append({"end": 1})
    finite = [
        {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
        for row in rows
    ]
    assert read(path) == [*finite[:kept], {"end": 1}]


def test_a_file_that_was_lost_starts_again(tmp_path):
    lines = JsonLines(tmp_path / "a.jsonl")
    lines.length = 1000
    lines.append({"a": 1})
    assert read(tmp_path / "a.jsonl") == [{"a": 1}]


@pytest.mark.parametrize(
    ("harm", "kept"),
    [
        (lambda data: data[:25], 2),  # within the third row
        (lambda data: data[:10], 1),
        (lambda data: data[:3], 0),
        (lambda data: None, 0),
        (lambda data: data[:18] + data[27:] + b'{"a": 5, "b": "later"}\n', 3),  # a row is gone
    ],
)
def test_a_damaged_file_is_told_and_goes_on_after_its_last_whole_row(tmp_path, caplog, harm, kept):
    path = tmp_path / "a.jsonl"
    written = [{"a": k} for k in range(4)]
    lines = JsonLines(path)
    for row in written:
        lines.append(row)
    harmed = harm(path.read_bytes())
    path.unlink() if harmed is None else path.write_bytes(harmed)
    resumed = JsonLines(path)
    resumed.resume(lines.length)
    assert caplog.messages == [
        f"{path} is damaged: {9 * kept} of its 36 bytes are there in whole rows; the others are "
        "lost, and it goes on after these"
    ]
    assert not path.exists() or path.stat().st_size == 9 * kept
    resumed.append({"end": 1})
    assert read(path)[-1] == {"end": 1}
    assert len(read(path)) == kept + 1


def test_a_sound_file_goes_on_without_a_word(tmp_path, caplog):
    lines = JsonLines(tmp_path / "a.jsonl")
    lines.append({"a": 1})
    length = lines.length
    lines.append({"a": 2})
    resumed = JsonLines(lines.path)
    resumed.resume(length)
    assert list(resumed.rows()) == [{"a": 1}]
    assert caplog.messages == []


WANDB = """
import logging, os, sys
logging.basicConfig(format="%(levelname)s %(message)s")
import lmkit.training.loggers.jsonl, lmkit.training.loggers.wandb
assert "wandb" not in sys.modules
lmkit.training.loggers.wandb.NETWORK_SECONDS = 1
for name, mode, key in (("a", "offline", ""), ("b", "online", ""), ("c", "online", "0" * 40)):
    os.environ["WANDB_API_KEY"] = key
    logger = lmkit.training.loggers.WandbLogger(mode=mode, save_dir=sys.argv[1], version=name)
    logger.log_hyperparams({"model": {"hidden_size": 3}})
    logger.log_metrics({"val/nll": 1.0, "epoch": 0}, 5)
    logger.close()
"""


def test_wandb_without_a_network(tmp_path):
    """Offline, online without an account and without a network: three runs, each its own."""
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("WANDB")},
        "NETRC": str(tmp_path / "none"),
        "WANDB_BASE_URL": "http://127.0.0.1:9",
    }
    command = [sys.executable, "-c", WANDB, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    warnings = [line for line in done.stderr.splitlines() if "WARNING" in line]
    assert warnings[0] == (
        "WARNING logger mode=online, but nobody is logged in to wandb: staying offline"
    )
    assert warnings[1].startswith("WARNING wandb cannot be reached (")
    assert len(warnings) == 2
    for name in "abc":
        (stored,) = (tmp_path / "wandb").glob(f"offline-run-*/run-{name}.wandb")
        assert stored.stat().st_size > 100


def test_wandb_modes():
    mistake = "logger.wandb.mode=of: expected offline or online"
    assert WandbLogger.mistakes({"mode": "of"}, "logger.wandb") == [mistake]
    assert WandbLogger.mistakes({"mode": "online"}, "logger.wandb") == []


def test_logged_in(tmp_path, monkeypatch):
    for name in ("WANDB_API_KEY", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert not logged_in()
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password secret\n")
    assert logged_in()
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    assert not logged_in()
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    assert logged_in()


def test_a_logger_that_raises_costs_a_warning(tmp_path, caplog):
    class Failing(CSVLogger):
        calls = 0

        def log_metrics(self, metrics, step=None):
            self.calls += 1
            raise ConnectionError("no route to host")

    logger = Failing(tmp_path)
    tracker = CSVTracker(logger, Account(tmp_path, None, JsonlLogger(tmp_path)))
    tracker.begin()
    for step in range(3):
        logger.log_metrics({"val/nll": 1.0}, step)
    tracker.finish({}, 0)
    assert logger.calls == 1
    assert caplog.messages == [
        "Failing failed (ConnectionError: no route to host): it gets no more; metrics.jsonl goes on"
    ]
