"""Real trainings killed at any moment, with full disks and damaged files; each goes on exactly."""

import json
import random
import shutil
import signal
from pathlib import Path

import injected
import pytest
from faulty import assert_same_run, begin, end
from journey import LIMIT, last, lmkit, rows, wait_for_rows

pytestmark = pytest.mark.faults


def interrupted(fault: str, step: int, settings, place: Path, code: int) -> tuple[Path, str]:
    environment = injected.fail_at(0, step, fault, place / "once")
    elsewhere = place / "tmp"
    elsewhere.mkdir()
    process = begin(
        *("train", *settings, "run_id=cut"), cwd=place, TMPDIR=str(elsewhere), **environment
    )
    return place / "outputs" / "tiny" / "cut", end(process, code)


STEPS = random.Random(4).sample(range(1, 80), 20)


@pytest.mark.parametrize(
    "step",
    [pytest.param(step, marks=pytest.mark.slow if n > 1 else ()) for n, step in enumerate(STEPS)],
)
def test_killed_at_a_random_step(finished, settings, tmp_path, step):
    run, _ = interrupted("kill", step, settings, tmp_path, -signal.SIGKILL)
    lmkit("resume", "cut", cwd=tmp_path)
    assert_same_run(run, finished[0])


@pytest.mark.parametrize("fault", ["kill in write", "kill before manifest"])
def test_killed_inside_a_checkpoint(finished, settings, tmp_path, fault):
    run, _ = interrupted(fault, 25, settings, tmp_path, -signal.SIGKILL)
    lmkit("resume", "cut", cwd=tmp_path)
    assert_same_run(run, finished[0])
    assert not list((run / "checkpoints").glob(".*.tmp"))


def test_a_full_disk_ends_the_run_and_leaves_the_last_checkpoint(finished, settings, tmp_path):
    run, err = interrupted("full disk", 25, settings, tmp_path, 2)
    assert "No space left on device" in err
    assert "Traceback" not in err
    assert last(run)["global_step"] == 20
    lmkit("resume", "cut", cwd=tmp_path)
    assert_same_run(run, finished[0])


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:1000])


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize(
    "harm",
    [
        pytest.param(truncate, marks=pytest.mark.slow),
        flip_a_bit,
        pytest.param(empty, marks=pytest.mark.slow),
    ],
)
def test_a_damaged_newest_checkpoint_is_set_aside(finished, settings, tmp_path, harm):
    run, _ = interrupted("kill", 37, settings, tmp_path, -signal.SIGKILL)
    newest = (run / "checkpoints" / "last.ckpt").resolve()
    harm(newest)
    done = lmkit("resume", "cut", cwd=tmp_path)
    assert f"{newest.name} " in done.stderr
    assert "set aside, going on from the one before" in done.stderr
    assert newest.with_name(f"{newest.name}.damaged").exists()
    assert_same_run(run, finished[0])


def test_ctrl_c_twice_stops_at_once_and_the_last_checkpoint_is_sound(finished, settings, tmp_path):
    process = begin("train", *settings, "run_id=cut", cwd=tmp_path)
    run = tmp_path / "outputs" / "tiny" / "cut"
    wait_for_rows(process, run, 5)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)
    end(process, 130)
    lmkit("resume", "cut", cwd=tmp_path)
    assert_same_run(run, finished[0])


def test_sigusr1_stops_saved(finished, settings, tmp_path):
    process = begin("train", *settings, "run_id=cut", cwd=tmp_path)
    run = tmp_path / "outputs" / "tiny" / "cut"
    wait_for_rows(process, run, 5)
    process.send_signal(signal.SIGUSR1)
    assert "stopped by SIGUSR1" in end(process, 128 + signal.SIGUSR1)
    lmkit("resume", "cut", cwd=tmp_path)
    assert_same_run(run, finished[0])


def test_max_time_ends_the_run_in_order(settings, tmp_path):
    arguments = [*settings, "trainer.max_epochs=100000", "trainer.max_time=00:00:00:02"]
    lmkit("train", *arguments, "scheduler=constant", "run_id=timed", cwd=tmp_path)
    run = tmp_path / "outputs" / "tiny" / "timed"
    assert json.loads((run / "status.json").read_text())["status"] == "finished"
    assert last(run)["global_step"] > 0


def test_two_runs_on_one_directory(settings, tmp_path):
    process = begin("train", *settings, "run_id=one", "trainer.max_epochs=1000", cwd=tmp_path)
    run = tmp_path / "outputs" / "tiny" / "one"
    wait_for_rows(process, run, 3)
    done = lmkit("train", *settings, "run_id=one", "trainer.max_epochs=1000", cwd=tmp_path, code=2)
    assert f"run_id=one is held by process {process.pid}" in done.stderr
    process.kill()
    process.communicate(timeout=LIMIT)
    # A lock of the dead holds nobody: this is refused for what it asks.
    done = lmkit("resume", "one", "trainer.max_epochs=1", cwd=tmp_path, code=2)
    assert "trainer.max_epochs=1 but the run has come further" in done.stderr


def test_a_store_that_was_changed_is_noticed_before_training(finished, settings, tmp_path):
    place = tmp_path / "again"
    shutil.copytree(finished[0].parents[2], place, symlinks=True)
    (tokens,) = (place / "outputs" / ".cache").rglob("train/00000/tokens.bin")
    flip_a_bit(tokens)
    done = lmkit("train", *settings, "run_id=after", cwd=place)
    assert f"{tokens}: the prepared data is damaged" in done.stderr
    assert rows(place / "outputs" / "tiny" / "after") == rows(finished[0])


def test_a_clock_that_goes_backwards_changes_nothing(finished, settings, tmp_path):
    run, _ = interrupted("clock back", 25, settings, tmp_path, 0)
    assert_same_run(run, finished[0])
    status = json.loads((run / "status.json").read_text())
    assert status["status"] == "finished"
    assert status["ended"] < status["started"], "the clock did go back"
    lmkit("evaluate", "latest", cwd=tmp_path)


def test_a_logger_that_raises_costs_a_warning(finished, settings, tmp_path):
    run, err = interrupted("logger", 25, [*settings, "logger=wandb"], tmp_path, 0)
    assert "WandbLogger failed (ValueError: an injected mistake): it gets no more" in err
    assert_same_run(run, finished[0])
