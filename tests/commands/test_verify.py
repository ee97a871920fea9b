"""`lmkit verify` on a real run, and on one of which a promise does not hold."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from journey import lmkit

from lmkit.commands import verify
from lmkit.errors import ResultError, UserError
from lmkit.run import Run


def test_every_promise_holds_and_the_run_is_left_alone(finished):
    run, _ = finished
    before = {path.name: path.stat().st_mtime_ns for path in run.iterdir()}
    done = lmkit("verify", "whole", "steps=12", "format=json", cwd=run.parents[2])
    findings = json.loads(done.stdout)["findings"]
    assert [finding["holds"] for finding in findings] == [True] * 4, findings
    assert "equal bit for bit" in findings[0]["found"]
    assert {path.name: path.stat().st_mtime_ns for path in run.iterdir()} == before


def test_a_broken_promise_is_said_and_is_the_exit_code(finished, tmp_path, monkeypatch, capsys):
    place = shutil.copytree(finished[0].parents[2], tmp_path / "place", symlinks=True)
    run = Run(place / "outputs" / "tiny" / "whole")
    config = run.config() | {"outputs": str(place / "outputs")}
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(verify, "damage", lambda path: "differs from its manifest")
    monkeypatch.setattr(verify, "_rows", lambda run: [{"run": run.id, "train/nll": len(run.id)}])
    config["data"]["batch_size"] = 3
    with pytest.raises(ResultError, match="2 of 4 promises do not hold") as caught:
        verify.verify(run, config, steps=2)
    assert caught.value.exit_code == 1
    found = [finding["holds"] for finding in caught.value.result["findings"]]
    assert found.count(False) == 2
    told = " ".join(capsys.readouterr().out.split())
    assert "BROKEN kill -9 and resume change nothing" in told
    assert "metrics.jsonl DIFFER" in told
    assert "not tried one process or two" in told
    assert "BROKEN a checkpoint holds plain values alone" in told
    assert "holds documents alone or in any batch" in told


@pytest.mark.parametrize(
    ("said", "code", "kind", "message"),
    [
        ("x\\nerror: cannot write /a: full; make room there, then go on with: lmkit resume r\\n",
         2, UserError, "a training failed: cannot write /a: full; make room there"),
        ("error: 1 mistake:\\n  a: c\\n", 2, UserError, "a training failed: 1 mistake:\n  a: c"),
        ("error: not finite\\n", 1, ResultError, "a training failed: not finite"),
        ("socket.error: x", 3, RuntimeError, "a training failed, exit code 3:\nsocket.error: x"),
    ],
)  # fmt: skip
def test_a_training_that_fails_is_told_in_its_own_words(
    finished, tmp_path, monkeypatch, said, code, kind, message
):
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\nprintf '{said}' >&2; exit {code}\n")
    python.chmod(0o755)
    monkeypatch.setattr("lmkit.run.process.sys.executable", str(python))
    trials = verify.Trials(tmp_path / "outputs", Run(finished[0]).config())
    with pytest.raises(kind) as caught:
        trials.run("whole", 4)
    assert (type(caught.value), str(caught.value)) == (kind, message)


def test_numbers_that_are_not_finite_are_not_compared(monkeypatch):
    weights = {"state_dict": {"a": torch.ones(2), "b": torch.tensor([1.0, torch.nan])}}
    monkeypatch.setattr(verify, "load_checkpoint", lambda path: weights)
    with pytest.raises(UserError, match=r"^the training diverges within these steps: "):
        verify._last(Run(Path("run")))


def test_too_few_steps(finished):
    with pytest.raises(UserError, match="steps=1: must be at least 2"):
        verify.verify(Run(finished[0]), {}, steps=1)
