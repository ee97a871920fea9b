"""Interrupted and continued equals uninterrupted, bit for bit; damage is seen and named."""

import json
import os
import random
import signal
from pathlib import Path

import pytest
import torch
import trainee

from lmkit.config.check import check
from lmkit.config.compose import compose
from lmkit.errors import UserError
from lmkit.run.checkpoints import (
    AtomicCheckpointIO,
    latest_checkpoint,
    load_checkpoint,
    read_manifest,
)
from lmkit.training.random_state import random_state, set_random_state

STEPS = 3 * trainee.WINDOWS


def rows(directory: Path, name: str = "metrics.jsonl") -> list[dict]:
    """Rows without the one value that no two runs share."""
    lines = [json.loads(line) for line in (directory / name).read_text().splitlines()]
    return [{key: row[key] for key in row if key != "seconds"} for row in lines]


def assert_same(one: Path, other: Path) -> None:
    assert rows(one) == rows(other)
    assert rows(one, "samples.jsonl") == rows(other, "samples.jsonl")
    ends = [torch.load(path / "end.pt") for path in (one, other)]
    for left, right in zip(ends[0][0], ends[1][0], strict=True):
        assert torch.equal(left, right)
    for left, right in zip(*(end[1]["state"].values() for end in ends), strict=True):
        assert torch.equal(left["exp_avg_sq"], right["exp_avg_sq"])
    assert ends[0][1]["param_groups"] == ends[1][1]["param_groups"]


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """Uninterrupted runs by their options, each trained once."""
    done = {}

    def get(**options) -> Path:
        key = json.dumps(options, sort_keys=True)
        if key not in done:
            done[key] = tmp_path_factory.mktemp("straight")
            assert trainee.run(done[key], **options) == 0
        return done[key]

    return get


def test_killed_at_random_steps_and_continued(straight, tmp_path):
    whole = straight()
    kills = sorted(random.Random(20).sample(range(1, STEPS + 1), 4))
    for step in kills:
        assert trainee.run(tmp_path, at=["train", step], signals=[signal.SIGKILL]) == -9
    assert trainee.run(tmp_path) == 0
    assert_same(whole, tmp_path)


@pytest.mark.parametrize(
    ("signum", "code"), [(signal.SIGKILL, -9), (signal.SIGTERM, 143), (signal.SIGINT, 130)]
)
def test_stopped_in_validation_and_continued(straight, tmp_path, signum, code):
    for step in (12, 24, 36):
        assert trainee.run(tmp_path, at=["validation", step], signals=[signum]) == code
        if code > 0:
            assert latest_checkpoint(tmp_path / "checkpoints").name == f"step-{step:09d}.ckpt"
    assert trainee.run(tmp_path) == 0
    assert_same(straight(), tmp_path)


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM])
def test_stopped_while_accumulating_and_validating_within_epochs(straight, tmp_path, signum):
    options = {
        "trainer": {"accumulate_grad_batches": 2, "val_check_interval": 6},
        "checkpoint": {"every_n_train_steps": 1, "every_n_epochs": None},
    }
    for at in (["train", 3], ["validation", 3], ["train", 7], ["validation", 12]):
        code = trainee.run(tmp_path, at=at, signals=[signum], **options)
        assert code == (-9 if signum == signal.SIGKILL else 143)
    assert trainee.run(tmp_path, **options) == 0
    assert_same(straight(**options), tmp_path)


def test_epochs_cut_short(straight, tmp_path):
    options = {"trainer": {"limit_train_batches": 5}, "checkpoint": {"every_n_train_steps": 1}}
    for at in (["train", 5], ["validation", 5], ["train", 7], ["validation", 10]):
        assert trainee.run(tmp_path, at=at, signals=[signal.SIGTERM], **options) == 143
    assert trainee.run(tmp_path, **options) == 0
    assert_same(straight(**options), tmp_path)


@pytest.mark.parametrize("first", [{"max_steps": 17}, {"max_epochs": 1}, {"max_steps": 24}])
def test_made_longer(straight, tmp_path, first):
    assert trainee.run(tmp_path, trainer=first) == 0
    (tmp_path / "end.pt").unlink()
    assert trainee.run(tmp_path) == 0
    assert_same(straight(), tmp_path)


def test_nothing_changes_when_a_finished_run_is_continued(straight, tmp_path):
    assert trainee.run(tmp_path) == 0
    assert trainee.run(tmp_path) == 0
    assert rows(straight()) == rows(tmp_path)


def test_keeps_the_newest_two_and_the_best(straight):
    directory = straight(checkpoint={"every_n_train_steps": 5, "keep": 2}, seed=3) / "checkpoints"
    names = sorted(path.name for path in directory.glob("step-*.ckpt"))
    best = (directory / "best.ckpt").resolve().name
    scores = [row for row in rows(directory.parent) if "val/nll" in row]
    lowest = min(scores, key=lambda row: row["val/nll"])
    assert best == f"step-{lowest['step']:09d}.ckpt"
    assert names == sorted({best, "step-000000035.ckpt", "step-000000036.ckpt"})
    assert (directory / "last.ckpt").resolve().name == "step-000000036.ckpt"
    manifest = read_manifest(directory / "last.ckpt")
    assert (manifest["format"], manifest["step"], manifest["config"]) == (2, 36, "abc")
    assert sorted(path.name for path in directory.iterdir() if path.suffix == ".tmp") == []


def write(directory: Path, *numbers: int, **extra) -> list[Path]:
    """Checkpoints that only files know of."""
    paths = []
    for step in numbers:
        paths.append(directory / f"step-{step:09d}.ckpt")
        state = {"weight": torch.full((1000,), float(step))}
        checkpoint = {"state_dict": state, "global_step": step, "epoch": 0, **extra}
        AtomicCheckpointIO().save_checkpoint(checkpoint, paths[-1])
    return paths


def truncate(path: Path) -> str:
    size = path.stat().st_size
    os.truncate(path, size // 2)
    return f"has {size // 2} bytes where its manifest says {size}"


def empty(path: Path) -> str:
    size = path.stat().st_size
    os.truncate(path, 0)
    return f"has 0 bytes where its manifest says {size}"


def flip(path: Path) -> str:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    return "differs from its manifest in its SHA-256"


def forget(path: Path) -> str:
    path.with_suffix(".json").unlink()
    return "has no manifest: its writing was cut short"


@pytest.mark.parametrize("harm", [truncate, empty, flip, forget])
def test_a_damaged_newest_is_set_aside(tmp_path, caplog, harm):
    before, newest = write(tmp_path, 1, 2)
    for name in ("last.ckpt", "best.ckpt"):
        (tmp_path / name).symlink_to(newest.name)
    reason = harm(tmp_path / "last.ckpt" if harm is not forget else newest)
    assert latest_checkpoint(tmp_path) == before
    assert caplog.messages == [
        f"checkpoint {newest} {reason}; set aside, going on from the one before"
    ]
    assert (tmp_path / "step-000000002.ckpt.damaged").is_file()
    assert not newest.exists()
    assert (tmp_path / "last.ckpt").resolve() == before
    assert not (tmp_path / "best.ckpt").exists()
    assert latest_checkpoint(tmp_path) == before


def test_all_damaged(tmp_path):
    (only,) = write(tmp_path, 1)
    reason = truncate(only)
    with pytest.raises(UserError) as error:
        latest_checkpoint(tmp_path)
    assert str(error.value) == (
        f"no checkpoint in {tmp_path} can be used: step-000000001.ckpt {reason}"
    )
    with pytest.raises(UserError) as error:  # nor does the run begin again behind its back
        latest_checkpoint(tmp_path)
    assert str(error.value) == (
        f"no checkpoint in {tmp_path} can be used: step-000000001.ckpt.damaged was set aside"
    )


def test_what_has_gone_from_beside_its_manifest_is_told_and_never_none(tmp_path, caplog):
    before, newest = write(tmp_path, 1, 2)
    newest.unlink()
    assert latest_checkpoint(tmp_path) == before
    assert caplog.messages == [f"checkpoint {newest} has gone: its manifest is there"]
    before.unlink()
    with pytest.raises(UserError) as error:
        latest_checkpoint(tmp_path)
    assert str(error.value) == (
        f"no checkpoint in {tmp_path} can be used: step-000000001.ckpt has gone; "
        "step-000000002.ckpt has gone"
    )


def test_none_yet(tmp_path):
    assert latest_checkpoint(tmp_path) is None


def test_an_explicit_damaged_one_is_an_error(tmp_path):
    (path,) = write(tmp_path, 1)
    reason = flip(path)
    with pytest.raises(UserError) as error:
        load_checkpoint(path)
    assert str(error.value) == f"checkpoint {path} {reason}; give another one"
    with pytest.raises(UserError, match="no such checkpoint"):
        load_checkpoint(tmp_path / "absent.ckpt")
    (tmp_path / "foreign.ckpt").write_bytes(b"not a checkpoint")
    with pytest.raises(UserError, match="cannot be read as one; give another one"):
        load_checkpoint(tmp_path / "foreign.ckpt")
    torch.save([1], tmp_path / "list.ckpt")
    with pytest.raises(UserError, match="has no state_dict"):
        load_checkpoint(tmp_path / "list.ckpt")


def test_a_newer_format_is_not_touched(tmp_path):
    old, new = write(tmp_path, 1, 2)
    manifest = json.loads(new.with_suffix(".json").read_text())
    new.with_suffix(".json").write_text(json.dumps(manifest | {"format": 3}))
    with pytest.raises(UserError, match="has format 3, this lmkit reads up to 2: update lmkit"):
        latest_checkpoint(tmp_path)
    assert new.is_file()
    assert old.is_file()


@pytest.mark.parametrize(
    "damage",
    [lambda path: path.mkdir(), os.mkfifo, lambda path: path.symlink_to(path.name)],
)
def test_a_manifest_that_cannot_be_read_is_no_damage(tmp_path, damage):
    path = tmp_path / "step-000000001.ckpt"
    AtomicCheckpointIO().save_checkpoint({"state_dict": {}, "global_step": 1, "epoch": 0}, path)
    path.with_suffix(".json").unlink()
    damage(path.with_suffix(".json"))
    with pytest.raises(UserError, match=f"^{path.with_suffix('.json')} "):
        latest_checkpoint(tmp_path)
    assert path.is_file()


@pytest.mark.parametrize(
    "key", ["format", "step", "epoch", "epochs_done", "bytes", "sha256", "splits"]
)
def test_a_manifest_of_other_values_is_damaged(tmp_path, key):
    path = tmp_path / "step-000000001.ckpt"
    AtomicCheckpointIO({"config": {"a": 1}, "splits": {"train": "x"}}).save_checkpoint(
        {"state_dict": {}, "global_step": 1, "epoch": 0}, path
    )
    assert latest_checkpoint(tmp_path) == path
    manifest = json.loads(path.with_suffix(".json").read_text())
    path.with_suffix(".json").write_text(json.dumps(manifest | {key: ["x"]}))
    assert read_manifest(path) == {}
    with pytest.raises(UserError, match="has a damaged manifest"):
        latest_checkpoint(tmp_path)


def test_an_older_format_is_read_but_not_gone_on_from(tmp_path):
    _, new = write(tmp_path, 1, 2)
    manifest = json.loads(new.with_suffix(".json").read_text())
    new.with_suffix(".json").write_text(json.dumps(manifest | {"format": 1}))
    with pytest.raises(
        UserError, match="has format 1: it can be evaluated, but a run goes on from "
    ):
        latest_checkpoint(tmp_path)
    assert load_checkpoint(new)["global_step"] == 2


class Hostile:
    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self):
        return os.system, (f"touch '{self.file}'",)


def test_a_hostile_checkpoint_runs_nothing(tmp_path):
    path = tmp_path / "hostile.ckpt"
    torch.save({"state_dict": {}, "more": Hostile(tmp_path / "ran")}, path)
    with pytest.raises(UserError, match=r"is refused: it asks for posix\.system; give another"):
        load_checkpoint(path)
    assert not (tmp_path / "ran").exists()


def test_what_only_a_pickle_could_give_back_is_not_written(tmp_path):
    (path,) = write(tmp_path, 1)
    with pytest.raises(Exception, match="Weights only load failed"):
        write(tmp_path, 1, more=Path("a"))
    assert load_checkpoint(path)["global_step"] == 1
    assert {p.name for p in tmp_path.iterdir()} == {path.name, "step-000000001.json"}


def test_a_full_disk_leaves_the_old_one(tmp_path, monkeypatch):
    (path,) = write(tmp_path, 1)

    def fsync(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match="No space left"):
        write(tmp_path, 1, more=torch.zeros(10))
    monkeypatch.undo()
    assert "more" not in load_checkpoint(path)
    assert {p.name for p in tmp_path.iterdir()} == {path.name, "step-000000001.json"}


def test_random_state_returns():
    import numpy as np

    def draw():
        return random.random(), float(np.random.randn()), float(torch.rand(()))

    before = random_state()
    np.random.randn()  # one of a pair: the other is kept in the state
    middle = random_state()
    first = draw()
    set_random_state(middle)
    assert draw() == first
    set_random_state(before)
    assert draw() != first


def test_numbers_that_cannot_be():
    keys = {"every_n_train_steps": 0, "every_n_epochs": None, "keep": 1}
    with pytest.raises(UserError) as refused:
        check(compose([f"callbacks.checkpoint.{key}={json.dumps(n)}" for key, n in keys.items()]))
    assert str(refused.value).splitlines()[1:] == [
        "  callbacks.checkpoint.every_n_train_steps=0: must be at least 1",
        "  callbacks.checkpoint.keep=1: must be at least 2",
    ]
