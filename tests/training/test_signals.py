"""Real signals to real processes: the exit code, the checkpoint, and what is left running."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import trainee

from lmkit.run.checkpoints import latest_checkpoint, load_checkpoint
from lmkit.system.signals import Stopped, StopSignals
from lmkit.training.callbacks.non_finite import _hint

START = """
import signal, sys, time
from lmkit.system.signals import Stopped, StopSignals
try:
    with StopSignals():
        print("ready", flush=True)
        try:
            time.sleep(30)
        except Exception:
            sys.exit(5)
except Stopped as stop:
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert "torch" not in sys.modules
    sys.exit(stop.exit_code)
"""


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_during_start_up(signum, code):
    command = [sys.executable, "-c", START]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signum)
        assert process.wait(20) == code


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_training_stops_saved_after_the_step(tmp_path, signum, code):
    assert trainee.run(tmp_path, at=["train", 7], signals=[signum]) == code
    newest = latest_checkpoint(tmp_path / "checkpoints")
    assert newest.name == "step-000000007.ckpt"
    assert load_checkpoint(newest)["global_step"] == 7
    assert not (tmp_path / "end.pt").exists()


def test_a_signal_from_outside(tmp_path):
    process = trainee.start(tmp_path, trainer={"max_epochs": -1})
    deadline = time.monotonic() + trainee.HARD_LIMIT
    while not (tmp_path / "checkpoints" / "last.ckpt").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGTERM)
    process.join(trainee.HARD_LIMIT)
    assert process.exitcode == 143
    steps = [int(path.stem[5:]) for path in (tmp_path / "checkpoints").glob("step-*.ckpt")]
    newest = load_checkpoint(latest_checkpoint(tmp_path / "checkpoints"))
    assert newest["global_step"] == max(steps)


def test_a_second_ctrl_c_stops_at_once_and_spoils_nothing(tmp_path):
    twice = [signal.SIGINT, signal.SIGINT]
    assert trainee.run(tmp_path, at=["train", 7], signals=twice) == 130
    assert latest_checkpoint(tmp_path / "checkpoints").name == "step-000000004.ckpt"


def test_sigterm_twice_is_sigterm_once(tmp_path):
    twice = [signal.SIGTERM, signal.SIGTERM]
    assert trainee.run(tmp_path, at=["train", 7], signals=twice) == 143
    assert latest_checkpoint(tmp_path / "checkpoints").name == "step-000000007.ckpt"


def test_a_signal_in_the_last_step(tmp_path):
    assert trainee.run(tmp_path, at=["train", 36], signals=[signal.SIGTERM]) == 143
    assert trainee.run(tmp_path) == 0


def test_between_two_windows_of_one_update_nothing_stops(tmp_path):
    options = {"trainer": {"accumulate_grad_batches": 5}, "checkpoint": {"every_n_epochs": None}}
    assert trainee.run(tmp_path, at=["train", 1], signals=[signal.SIGTERM], **options) == 143
    loops = load_checkpoint(latest_checkpoint(tmp_path / "checkpoints"))["loops"]["fit_loop"]
    assert loops["epoch_loop.batch_progress"]["current"]["completed"] == 5


def test_handlers_are_put_back():
    before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
    with pytest.raises(Stopped, match="stopped by SIGTERM"), StopSignals():
        signal.raise_signal(signal.SIGTERM)
    assert {s: signal.getsignal(s) for s in before} == before


def stderr(directory: Path) -> str:
    return (directory / "stderr.txt").read_text()


def test_a_loss_that_is_not_finite_stops_before_the_update(tmp_path):
    assert trainee.run(tmp_path, nan_at=18) == 1
    assert (
        "lmkit.training.callbacks.non_finite.NonFiniteError: the loss or its gradient is not "
        "finite at step 19 (epoch 1, "
        "window 6); the last checkpoint is from before that: go on from it with lmkit resume "
        f"{tmp_path} optimizer.lr=0.005, or with a trainer.gradient_clip_val\n"
    ) in stderr(tmp_path)
    newest = load_checkpoint(latest_checkpoint(tmp_path / "checkpoints"))
    assert newest["global_step"] == 16
    assert all(torch.isfinite(tensor).all() for tensor in newest["state_dict"].values())


def test_a_checkpoint_that_leads_to_it_whatever_the_rate_is_not_to_be_gone_on_from(tmp_path):
    assert trainee.run(tmp_path, nan_at=16) == 1
    assert latest_checkpoint(tmp_path / "checkpoints").name == "step-000000016.ckpt"
    assert (
        "window 4); begin another run with a lower optimizer.lr or a trainer.gradient_clip_val\n"
    ) in stderr(tmp_path)


def test_a_rate_that_the_schedule_has_raised_is_named(tmp_path):
    """What lowers it is no other `optimizer.lr`."""
    trainer = SimpleNamespace(default_root_dir=tmp_path)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    trainer.optimizers = [optimizer]
    lower = "; begin another run with a lower optimizer.lr or a trainer.gradient_clip_val"
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=20)
    assert _hint(trainer, 1) == lower
    optimizer.step()
    schedule.step()
    assert _hint(trainer, 1) == (
        "; the schedule had made a learning rate of 2 of optimizer.lr=0.1: begin another run with "
        "other values of scheduler"
    )


def test_within_accumulation_the_window_is_named(tmp_path):
    options = {"trainer": {"accumulate_grad_batches": 5}}
    assert trainee.run(tmp_path, nan_at=4, **options) == 1
    assert "not finite at step 5 (epoch 1, window 5)" in stderr(tmp_path)


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    assert trainee.run(tmp_path, spoil_at=8) == 1
    assert "layers.0.weight is not finite after step 8; the last" in stderr(tmp_path)
    found = json.loads((tmp_path / "non_finite.json").read_text())
    assert found == {"step": 8, "parameter": "layers.0.weight"}
    assert latest_checkpoint(tmp_path / "checkpoints").name == "step-000000004.ckpt"
