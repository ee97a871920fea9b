"""Two real processes of one run, one of which dies, raises, hangs, diverges or is stopped."""

import json
import os
import signal
import time

import injected
import pytest
import torch
from faulty import TWO, begin, end, nobody_writes_with, workers
from journey import LIMIT, assert_same_state, last, lmkit, rows, wait_for_rows

pytestmark = pytest.mark.faults
SLOW = pytest.mark.slow


def test_a_process_that_is_killed_is_started_again_and_nothing_is_lost(two, settings, tmp_path):
    fault = injected.fail_at(1, 27, "kill", tmp_path / "once")
    process = begin("train", *settings, *TWO, "run_id=cut", cwd=tmp_path, **fault)
    err = end(process, 0)
    run = tmp_path / "outputs" / "tiny" / "cut"
    assert "starting again from the last checkpoint (1 of 3)" in err
    assert rows(run) == rows(two)
    assert_same_state(last(run), last(two))


def test_no_process_takes_the_weights_that_were_best_before(two, settings, tmp_path):
    """Rank 0 is slow to say which checkpoint is the best; the others do not look before."""
    fault = injected.fail_at(0, 530, "slow link", tmp_path / "once")
    end(begin("train", *settings, *TWO, "run_id=slow", cwd=tmp_path, **fault), 0)
    assert (tmp_path / "once").exists()
    run = tmp_path / "outputs" / "tiny" / "slow"
    assert rows(run) == rows(two)
    assert_same_state(last(run), last(two))


def test_a_process_that_is_killed_too_often_ends_the_run(settings, tmp_path):
    fault = injected.fail_at(1, 5, "kill", tmp_path / "once")
    process = begin("train", *settings, *TWO, "run_id=cut", "restarts=0", cwd=tmp_path, **fault)
    err = end(process, 1)
    assert "rank 1 " in err
    status = json.loads((tmp_path / "outputs/tiny/cut/status.json").read_text())
    assert status["status"] == "failed"


def test_a_process_that_raises_ends_the_others_with_its_name_and_stack(settings, tmp_path):
    fault = injected.fail_at(1, 5, "raise", tmp_path / "once")
    started = time.monotonic()
    err = end(begin("train", *settings, *TWO, "run_id=cut", cwd=tmp_path, **fault), 1)
    assert "rank 1 (process " in err
    assert "raised ValueError: an injected mistake" in err
    assert "injected.py" in err, "no stack"
    assert "starting again" not in err
    assert time.monotonic() - started < 60
    assert "an injected mistake" in (tmp_path / "outputs/tiny/cut/logs/rank-1.log").read_text()


@pytest.mark.parametrize(
    "who", [pytest.param([0], marks=SLOW), [1], pytest.param([0, 1], marks=SLOW)]
)
def test_sigterm_to_some_processes_stops_all_at_the_same_step(two, settings, tmp_path, who):
    process = begin("train", *settings, *TWO, "run_id=cut", cwd=tmp_path)
    run = tmp_path / "outputs" / "tiny" / "cut"
    wait_for_rows(process, run, 5)
    ids = workers(process)
    assert len(ids) == 2
    for rank in who:
        os.kill(ids[rank], signal.SIGTERM)
    err = end(process, 143)
    assert "stopped by SIGTERM; to go on: lmkit resume cut" in err
    assert json.loads((run / "status.json").read_text())["status"] == "stopped"
    assert last(run)["global_step"] < last(two)["global_step"]
    lmkit("resume", "cut", cwd=tmp_path)
    assert rows(run) == rows(two)
    assert_same_state(last(run), last(two))


@pytest.mark.parametrize(
    ("signum", "code"),
    [pytest.param(signal.SIGTERM, 143, marks=SLOW), (signal.SIGINT, 130)],
)
def test_a_signal_to_the_parent_stops_all(two, settings, tmp_path, signum, code):
    process = begin("train", *settings, *TWO, "run_id=cut", cwd=tmp_path)
    run = tmp_path / "outputs" / "tiny" / "cut"
    wait_for_rows(process, run, 5)
    process.send_signal(signum)
    end(process, code)
    saved = last(run)["global_step"]
    assert 0 < saved < last(two)["global_step"]
    lmkit("resume", "cut", cwd=tmp_path)
    assert rows(run) == rows(two)
    assert_same_state(last(run), last(two))


@pytest.mark.parametrize("started", [False, True])
def test_the_parent_is_killed_and_the_processes_end(two, settings, tmp_path, started):
    arguments = ("train", *settings, *TWO, "run_id=cut")
    process = begin(*arguments, cwd=tmp_path)
    run = tmp_path / "outputs" / "tiny" / "cut"
    if started:
        wait_for_rows(process, run, 5)
    while len(ids := workers(process)) < 2:
        time.sleep(0.01)
    process.kill()
    process.wait(timeout=LIMIT)
    again = begin(*arguments, cwd=tmp_path)
    nobody_writes_with(again, run, ids)
    process.communicate(timeout=LIMIT)
    end(again, 0)
    assert rows(run) == rows(two)


def test_a_loss_that_is_not_finite_on_one_stops_all_before_the_update(settings, tmp_path):
    fault = injected.fail_at(1, 13, "nan", tmp_path / "once")
    err = end(begin("train", *settings, *TWO, "run_id=cut", cwd=tmp_path, **fault), 1)
    assert "the loss or its gradient is not finite at step 14 (epoch " in err
    named = json.loads((tmp_path / "outputs/tiny/cut/non_finite.json").read_text())
    assert named["step"] == 14
    assert named["documents"]
    saved = last(tmp_path / "outputs" / "tiny" / "cut")
    assert saved["global_step"] == 10
    assert all(torch.isfinite(tensor).all() for tensor in saved["state_dict"].values())


def test_an_update_that_is_not_finite_on_one_is_skipped_by_all(settings, tmp_path):
    fault = injected.fail_at(1, 13, "nan", tmp_path / "once")
    skip = "callbacks.non_finite.action=skip"
    end(begin("train", *settings, *TWO, skip, "run_id=cut", cwd=tmp_path, **fault), 0)
    run = tmp_path / "outputs" / "tiny" / "cut"
    logged = rows(run)
    assert [row["train/skipped"] for row in logged if "train/skipped" in row] == [1]
    assert all(row["train/nll"] is not None for row in logged if "train/nll" in row)
    assert all(torch.isfinite(tensor).all() for tensor in last(run)["state_dict"].values())


def test_a_process_that_hangs_is_named_with_its_stack_and_started_again(two, settings, tmp_path):
    fault = injected.fail_at(1, 27, "hang", tmp_path / "once")
    patience = "callbacks.watchdog.seconds=5"
    process = begin("train", *settings, *TWO, "run_id=cut", patience, cwd=tmp_path, **fault)
    err = end(process, 0)
    assert "rank 1 (process " in err
    assert "(forward, step 28, window " in err
    assert "time.sleep(10_000)" in err, "no stack"
    assert rows(tmp_path / "outputs" / "tiny" / "cut") == rows(two)


@pytest.mark.slow
def test_two_to_one_to_two_processes(settings, tmp_path):
    """State and sums are those of all lanes, whoever had them; stopped in mid-epoch each time."""
    lmkit("train", *settings, "run_id=one", cwd=tmp_path)
    run = tmp_path / "outputs" / "tiny" / "more"
    alone = ("trainer.devices=1", "trainer.strategy=auto")
    together = ("trainer.devices=2", "trainer.strategy=ddp")
    for first, devices, number in (("train", TWO, 4), ("resume", alone, 12)):
        what = (*settings, "run_id=more") if first == "train" else ("more",)
        process = begin(first, *what, *devices, cwd=tmp_path)
        wait_for_rows(process, run, number)
        process.send_signal(signal.SIGTERM)
        end(process, 143)
    lmkit("resume", "more", *together, cwd=tmp_path)
    one, more = rows(run.parent / "one"), rows(run)
    assert [row["step"] for row in one] == [row["step"] for row in more]
    for a, b in zip(one, more, strict=True):
        for key in ("train/nll", "val/nll", "test/nll", "lr"):
            assert a.get(key) == pytest.approx(b.get(key), abs=1e-4)
