"""What a run that goes on is compared with, what it keeps, and what it comes to when made longer.

Killed and resumed bit for bit: test_train.py and test_checkpoint.py.
"""

import json
import math
import random
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR, ReduceLROnPlateau, StepLR

from lmkit import cli
from lmkit.assembly import build_model
from lmkit.run import Run
from lmkit.run.checkpoints import load_checkpoint, read_manifest
from lmkit.run.history import refused
from lmkit.training.callbacks import Checkpoint
from lmkit.training.continuation import Continuation
from lmkit.training.task import Task

WORDS = ["the", "a", "cat", "dog", "sat", "ran", "on", "under", "mat", "and", "then", "slept"]
SMALL = [
    *("tokenizer=word", "model.embedding_size=8", "model.hidden_size=8", "model.num_layers=1"),
    *("model.dropout=0", "data.batch_size=4", "data.bptt=20", "threads=1", "name=t"),
    *("data.valid_fraction=0", "data.test_fraction=0"),
    *("trainer.precision=32-true", "trainer.log_every_n_steps=1", "callbacks.samples.num_tokens=3"),
]


def write_text(directory: Path) -> None:
    draw = random.Random(0)
    directory.mkdir()
    for split, number in (("train", 60), ("valid", 20), ("test", 20)):
        paragraphs = [" ".join(draw.choices(WORDS, k=10)) for _ in range(number)]
        (directory / f"{split}.txt").write_text("\n\n".join(paragraphs) + "\n")


def lmkit(*arguments: str, code: int = 0) -> None:
    assert cli.main(list(arguments)) == code


def train(place: Path, *arguments: str, code: int = 0) -> Path:
    """A run of the text in `place`; its directory."""
    data = ("data=files", f"data.path={place / 'text'}", "data.unit=paragraph")
    lmkit("train", *data, *SMALL, f"outputs={place / 'outputs'}", *arguments, code=code)
    return place / "outputs" / "t" / "run"


def resume(run: Path, *arguments: str, code: int = 0) -> None:
    """With the text beside the outputs, wherever they are by now."""
    text = run.parents[2] / "text"
    lmkit("resume", str(run), f"data.path={text}", *arguments, code=code)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """Two runs of two epochs that differ in their seed."""
    place = tmp_path_factory.mktemp("trained")
    write_text(place / "text")
    common = ("scheduler=cosine", "trainer.max_epochs=2")
    train(place, *common, "run_id=run")
    train(place, *common, "run_id=other", "seed=2", "trainer.max_steps=3")
    return place


@pytest.fixture
def run(trained, tmp_path) -> Path:
    """A copy of a run that has ended, with its text, somewhere else."""
    for name in ("text", "outputs"):
        shutil.copytree(trained / name, tmp_path / name, symlinks=True)
    return tmp_path / "outputs" / "t" / "run"


def tree(directory: Path) -> dict[str, bytes]:
    files = (file for file in directory.rglob("*") if file.is_file())
    return {str(file.relative_to(directory)): file.read_bytes() for file in files}


def rows(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def add(file: Path, text: str) -> None:
    file.write_text(file.read_text() + text)


# ---- compared


def test_a_checkpoint_of_another_run_is_refused_wherever_it_is_used(run, capsys):
    shutil.rmtree(run / "checkpoints")
    shutil.copytree(run.parent / "other" / "checkpoints", run / "checkpoints", symlinks=True)
    before = tree(run)
    (foreign,) = (run / "checkpoints").glob("step-*.ckpt")
    expected = (
        f"error: checkpoint {foreign} belongs to another run than run: seed is 2 there, 1 here; "
        "put the run's own checkpoint back, or take this one away\n"
    )
    resume(run, "trainer.max_epochs=3", code=2)
    assert capsys.readouterr().err.endswith(expected)
    for checkpoint in ("best", "last", foreign.stem):
        lmkit("evaluate", str(run), "text=the cat", f"checkpoint={checkpoint}", code=2)
        assert capsys.readouterr().err == expected
    assert tree(run) == before


def test_a_best_checkpoint_of_another_run_is_refused_too(run, capsys):
    foreign = run.parent / "other" / "checkpoints" / "step-000000003.ckpt"
    for suffix in (".ckpt", ".json"):
        shutil.copy(foreign.with_suffix(suffix), run / "checkpoints")
    (run / "checkpoints" / "best.ckpt").unlink()
    (run / "checkpoints" / "best.ckpt").symlink_to(foreign.name)
    resume(run, "trainer.max_epochs=3", code=2)
    assert "belongs to another run than run: seed is 2 there" in capsys.readouterr().err


def test_a_checkpoint_over_other_text_is_refused(run, capsys):
    path = (run / "checkpoints" / "last.ckpt").resolve().with_suffix(".json")
    manifest = json.loads(path.read_text())
    manifest["splits"]["train"] = "0" * 64
    path.write_text(json.dumps(manifest))
    lmkit("evaluate", str(run), "text=the cat", "checkpoint=last", code=2)
    assert "the train text has the hash 000000000000 there" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            lambda text: add(text / "train.txt", "\n\na dog\n"),
            "on another text than the data has now (the train split differs); put the text back as "
            "it was",
        ),
        (
            lambda text: add(text / "train.txt", "\n\na zebra\n"),
            "with another vocabulary than the tokenizer has now; put the tokenizer, and the text "
            "that it was made of, back as they were",
        ),
        (
            lambda text: (text / "valid.txt").unlink(),
            "on another text than the data has now (it has no valid split any more); put the text "
            "back as it was",
        ),
    ],
)
@pytest.mark.parametrize("lost", [(), ("data.json",)])
def test_other_text_to_train_on_is_refused_before_anything_is_written(
    run, capsys, change, reason, lost
):
    for name in lost:
        (run / name).unlink()
    change(run.parents[2] / "text")
    before = tree(run)
    resume(run, "trainer.max_epochs=3", code=2)
    assert (
        f"error: run cannot go on: it was trained {reason}, or begin another run\n"
    ) in capsys.readouterr().err
    assert tree(run) == before


def test_other_text_to_evaluate_on_is_said_and_never_compared_with_the_values_of_before(
    run, caplog
):
    state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    (own,) = (state["callbacks"][key] for key in state["callbacks"] if key == "Checkpoint")
    best = own["best_score"]
    # Words in an order of their own, so that every value is worse than those of before.
    text = "\n\n".join(" ".join(["mat"] * 12) for _ in range(20))
    (run.parents[2] / "text" / "valid.txt").write_text(text)
    add(run.parents[2] / "text" / "test.txt", "\n\nthe cat\n")
    first = (run / "data.json").read_bytes()
    resume(run, "trainer.max_epochs=4")
    assert [m for m in caplog.messages if "split" in m] == [
        "run goes on, but its valid split has another text than before: values on it are not "
        "compared with those of before; the best checkpoint, early stopping and a schedule that "
        "follows validations begin anew",
        "run goes on, but its test split has another text than before",
    ]
    values = {row["step"]: row["val/nll"] for row in rows(run) if "val/nll" in row}
    new = dict(list(values.items())[2:])
    assert min(new.values()) > best  # or the test would show nothing
    step = min(new, key=new.get)
    assert (run / "checkpoints" / "best.ckpt").resolve().name == f"step-{step:09d}.ckpt"
    summary = json.loads((run / "summary.json").read_text())
    assert summary["best/val/nll"] == pytest.approx(new[step])
    assert summary["best/step"] == step
    data = json.loads((run / "data.json").read_text())
    entry = data.pop("resumed")[0]
    assert data == json.loads(first)
    assert entry["splits"]["train"] == data["splits"]["train"]
    assert entry["splits"]["valid"] != data["splits"]["valid"]
    assert read_manifest(run / "checkpoints" / "last.ckpt")["splits"] == {
        name: split["sha256"] for name, split in entry["splits"].items()
    }


# ---- kept


def test_what_a_run_was_begun_with_stays_and_each_command_is_added(run, monkeypatch):
    first = yaml.safe_load((run / "overrides.yaml").read_text())
    here = json.loads((run / "environment.json").read_text())
    for length in ("trainer.max_epochs=3", "trainer.max_steps=46"):
        monkeypatch.setattr("sys.argv", ["lmkit", "resume", "run", length])
        resume(run, length)
    overrides = yaml.safe_load((run / "overrides.yaml").read_text())
    assert overrides[: len(first)] == first
    one, two = overrides[len(first) :]
    assert one["overrides"][1:] == ["trainer.max_epochs=3"]
    assert one["changed"]["trainer.max_epochs"] == [2, 3]
    assert two["changed"] == {"trainer.max_steps": [-1, 46]}
    environment = json.loads((run / "environment.json").read_text())
    resumed = environment.pop("resumed")
    assert environment == here
    assert [entry["command"][3] for entry in resumed] == [
        "trainer.max_epochs=3",
        "trainer.max_steps=46",
    ]
    assert all(entry.keys() == {"at", "command"} for entry in resumed)


def test_a_run_goes_on_where_it_has_been_moved_to(trained, run):
    config = yaml.safe_load((run / "config.yaml").read_text())
    elsewhere = run.parents[2] / "elsewhere"
    config["outputs"] = str(elsewhere)
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    before = tree(trained)
    resume(run, "trainer.max_epochs=3")
    assert not elsewhere.exists()
    assert tree(trained) == before
    assert rows(run)[-1]["epoch"] == 3
    assert Run(run).config()["outputs"] == str(run.parents[1])


# ---- ended


@pytest.mark.parametrize("more", [(), ("threads=2",), ("trainer.max_epochs=2",)])
def test_a_run_that_has_ended_stays_as_it_is(run, capsys, caplog, more):
    add(run.parents[2] / "text" / "valid.txt", "\n\nthe cat\n")  # nothing comes of it
    before = tree(run)
    resume(run, *more)
    out, err = capsys.readouterr()
    assert (
        f"t/run has ended and stays as it is; to train longer: lmkit resume run "
        f"outputs={run.parents[1]} trainer.max_epochs=N\n"
    ) in err
    assert "best/val/perplexity" in out
    assert tree(run) == before
    assert not [message for message in caplog.messages if "split" in message]


def test_a_run_that_has_ended_is_entered_again_where_its_result_may_change(run):
    before = rows(run)
    resume(run, "callbacks.samples.prompt=a cat")
    assert [{**r, "seconds": 0} for r in rows(run)] == [{**r, "seconds": 0} for r in before]
    assert Run(run).config()["callbacks"]["samples"]["prompt"] == "a cat"


def test_a_run_goes_on_in_another_precision_as_on_a_machine_that_has_not_that_of_before(
    run, caplog
):
    step = max(row["step"] for row in rows(run))
    resume(run, "trainer.precision=bf16-mixed", "trainer.max_epochs=3")
    said = (
        "run began with trainer.precision 32-true, here bf16-mixed: it goes on, but not bit for bit"
    )
    assert said in caplog.messages
    assert max(row["step"] for row in rows(run)) > step


def test_a_run_that_has_ended_without_a_checkpoint_does_not_begin_again(run, capsys):
    shutil.rmtree(run / "checkpoints")
    before = tree(run)
    resume(run, "trainer.max_epochs=3", code=2)
    assert (
        "error: t/run has ended and has no checkpoint to go on from: put its checkpoints back, or "
        "begin another run\n"
    ) in capsys.readouterr().err
    assert tree(run) == before


def test_what_to_type_names_one_run_where_another_experiment_has_the_id_too(run, capsys):
    (run.parents[1] / "u" / "run").mkdir(parents=True)
    shutil.copy(run / "config.yaml", run.parents[1] / "u" / "run")
    resume(run)
    advised = capsys.readouterr().err.rpartition("to train longer: lmkit ")[2].split()
    assert advised == ["resume", "t/run", f"outputs={run.parents[1]}", "trainer.max_epochs=N"]


def test_a_run_that_keeps_no_checkpoint_says_so_at_its_end(tmp_path, capsys):
    write_text(tmp_path / "text")
    train(tmp_path, "run_id=run", "trainer.max_steps=2", "callbacks.checkpoint=null")
    out, err = capsys.readouterr()
    assert err.endswith("t/run has no checkpoint: none is written\n")
    assert "test/perplexity" in out


def test_fewer_updates_than_there_were_are_refused(run, capsys):
    before = tree(run)
    resume(run, "trainer.max_steps=3", code=2)
    assert "trainer.max_steps=3 but the run has come further: " in capsys.readouterr().err
    assert tree(run) == before


def test_early_stopping_is_final_until_it_has_more_patience(tmp_path):
    write_text(tmp_path / "text")
    stopping = ("callbacks=[default,early_stopping]", "callbacks.early_stopping.patience=1")
    run = train(tmp_path, "run_id=run", "trainer.max_epochs=50", "optimizer.lr=0.5", *stopping)
    before, ended = tree(run), rows(run)
    assert ended[-1]["epoch"] < 45
    resume(run)
    assert tree(run) == before
    # As if it had been killed in its test.
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(lines[:-1]))
    Run(run).write_status("running")
    summary = json.loads((run / "summary.json").read_text())
    (run / "summary.json").unlink()
    resume(run)
    assert [{**r, "seconds": 0} for r in rows(run)] == [{**r, "seconds": 0} for r in ended]
    again = json.loads((run / "summary.json").read_text())
    assert {k: again[k] for k in again if "/" in k} == {k: summary[k] for k in summary if "/" in k}
    for longer in ("trainer.max_epochs=60", "callbacks.early_stopping.min_delta=1e-4"):
        resume(run, longer)
        assert rows(run)[-1]["step"] == ended[-1]["step"]
    resume(run, "callbacks.early_stopping.patience=2", "trainer.max_steps=2000")
    assert rows(run)[-1]["step"] > ended[-1]["step"]


# ---- made longer


@pytest.mark.parametrize("lost", ["cut", "gone"])
def test_made_longer_the_schedule_is_that_of_the_new_length(run, caplog, lost):
    half = max(row["step"] for row in rows(run))
    if lost == "gone":
        (run / "metrics.jsonl").unlink()
    resume(run, "trainer.max_epochs=4")
    damaged = [message for message in caplog.messages if "is damaged" in message]
    assert len(damaged) == (lost == "gone")
    lrs = {row["step"]: row["lr"] for row in rows(run) if "lr" in row and row["step"] > half}
    (base,) = {yaml.safe_load((run / "config.yaml").read_text())["optimizer"]["lr"]}
    total = 2 * half
    assert sorted(lrs) == list(range(half + 1, total + 1))
    for step, lr in lrs.items():
        assert lr == base * (1 + math.cos(math.pi * min(step / total, 1.0))) / 2


def test_made_longer_a_run_with_averaged_weights_goes_on_from_those_that_were_trained(tmp_path):
    write_text(tmp_path / "text")
    ema = "+callbacks.ema={_target_: lightning.pytorch.callbacks.EMAWeightAveraging, decay: 0.9}"
    common = (ema, "scheduler=constant", "callbacks.checkpoint.monitor=null")
    whole = train(tmp_path, *common, "run_id=whole", "trainer.max_epochs=3").with_name("whole")
    longer = train(tmp_path, *common, "run_id=longer", "trainer.max_epochs=2").with_name("longer")
    resume(longer, "trainer.max_epochs=3")
    for key in ("train/nll", "val/nll"):
        one, other = ([r[key] for r in rows(run) if key in r] for run in (whole, longer))
        assert one == other
    one, other = (load_checkpoint(run / "checkpoints" / "last.ckpt") for run in (whole, longer))
    for state in ("state_dict", "current_model_state"):
        for name, weights in one[state].items():
            assert torch.equal(weights, other[state][name]), (state, name)
    assert not torch.equal(*(one[s]["head.bias"] for s in ("state_dict", "current_model_state")))


SCHEDULES = {
    "one cycle": lambda optimizer, steps: OneCycleLR(optimizer, 0.5, total_steps=int(steps)),
    "recursive": lambda optimizer, steps: CosineAnnealingLR(optimizer, T_max=int(steps)),
    "by steps": lambda optimizer, steps: StepLR(optimizer, 3, 0.5),
}


@pytest.mark.filterwarnings("ignore:Detected call of")
@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("lr", [0.1, 0.02])
def test_schedules_of_torch_are_where_those_of_the_new_length_would_be(name, lr):
    def made(rate: float, steps: int, done: int):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(2))], lr=rate, momentum=0.9)
        schedule = SCHEDULES[name](optimizer, steps)
        for _ in range(done):
            schedule.step()
        return optimizer, schedule

    optimizer, schedule = made(0.1, 10, 7)
    expected, expected_schedule = made(lr, 40, 7)
    config = {
        "optimizer": {"lr": lr},
        "trainer": {"max_steps": 40},
        "scheduler": {},
        "model": {"_target_": "lmkit.model.LSTM", "embedding_size": 4, "hidden_size": 4},
        "head": {"_target_": "lmkit.head.FullSoftmax"},
    }
    then = {**config, "optimizer": {"lr": 0.1}, "trainer": {"max_steps": 10}}
    task = Task(
        *build_model(config, 5),
        lambda parameters: torch.optim.SGD(parameters, lr=lr, momentum=0.9),
        SCHEDULES[name],
    )
    trainer = SimpleNamespace(
        optimizers=[optimizer],
        lr_scheduler_configs=[SimpleNamespace(scheduler=schedule)],
        estimated_stepping_batches=40,
    )
    Continuation({"config": then}, {"config": config, "splits": {}}).on_train_start(trainer, task)
    for _ in range(20):
        here, there = optimizer.param_groups[0], expected.param_groups[0]
        assert {**here, "params": 0} == {**there, "params": 0}
        schedule.step()
        expected_schedule.step()


def test_a_schedule_with_a_length_of_its_own_is_said_to_stay(caplog):
    config = {"trainer": {"max_epochs": 4}, "scheduler": {"T_max": 2}}
    then = {"trainer": {"max_epochs": 2}, "scheduler": {"T_max": 2}}
    Continuation({"config": then}, {"config": config, "splits": {}})._warn_of_lengths()
    assert caplog.messages == [
        "trainer.max_epochs=4 (2 before), but scheduler.T_max=2 is as it was: set it too if it is "
        "to follow"
    ]


def test_so_is_one_within_another(caplog):
    cosine = {"_target_": "torch.optim.lr_scheduler.CosineAnnealingLR", "T_max": 1}
    scheduler = {"milestones": [1], "schedulers": [cosine, {**cosine, "T_max": 3}]}
    config = {"trainer": {"max_epochs": 4}, "scheduler": scheduler}
    then = {"trainer": {"max_epochs": 2}, "scheduler": scheduler}
    Continuation({"config": then}, {"config": config, "splits": {}})._warn_of_lengths()
    assert caplog.messages == [
        "trainer.max_epochs=4 (2 before), but scheduler.milestones=[1] and "
        "scheduler.schedulers.0.T_max=1 and scheduler.schedulers.1.T_max=3 are as they were: "
        "set them too if they are to follow"
    ]


@pytest.mark.parametrize(
    ("key", "is_said"),
    [("trainer.max_epochs", True), ("scheduler.decay_share", True), ("optimizer.lr", False)],
)
def test_a_rate_that_rises_is_said_unless_it_was_set(caplog, key, is_said):
    then, now = nested(key, 1), nested(key, 2)
    continuation = Continuation({"config": then}, {"config": now, "splits": {}})
    continuation._warn_of_rise(0.3, 0.2)
    assert not caplog.messages
    continuation._warn_of_rise(0.1, 0.2)
    assert [message.partition(",")[0] for message in caplog.messages] == (
        ["the learning rate goes back up"] * is_said
    )


def test_a_length_that_has_changed_too_is_not_said_to_stay(caplog):
    then = {"trainer": {"max_epochs": 2}, "scheduler": {"T_max": 2}}
    config = {"trainer": {"max_epochs": 4}, "scheduler": {"T_max": 4}}
    Continuation({"config": then}, {"config": config, "splits": {}})._warn_of_lengths()
    assert caplog.messages == []


def test_what_was_best_on_other_validation_text_is_forgotten_by_all_that_watch_it():
    stopping, own = EarlyStopping("val/nll", patience=3), Checkpoint()
    other = EarlyStopping("train/nll")
    fresh = stopping.state_dict()
    plateau = ReduceLROnPlateau(torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0))
    plateau.step(0.5)
    plateau.step(0.7)
    seen = {"wait_count": 2, "stopped_epoch": 0, "best_score": torch.tensor(0.5), "patience": 3}
    checkpoint = {
        "callbacks": {
            stopping.state_key: dict(seen),
            other.state_key: dict(seen),
            own.state_key: {"best_score": 0.5, "best_step": 7},
        },
        "lr_schedulers": [plateau.state_dict()],
    }
    trainer = SimpleNamespace(callbacks=[stopping, other, own])
    then = {"config": {}, "splits": {"train": "a", "valid": "b"}}
    now = {"config": {}, "splits": {"train": "a", "valid": "c"}}
    Continuation(then, now).on_load_checkpoint(trainer, None, checkpoint)
    assert checkpoint["callbacks"][stopping.state_key] == fresh
    assert checkpoint["callbacks"][other.state_key] == seen
    assert checkpoint["callbacks"][own.state_key] == {"best_score": None, "best_step": 7}
    (state,) = checkpoint["lr_schedulers"]
    assert (state["best"], state["num_bad_epochs"]) == (math.inf, 0)


def test_values_on_other_validation_text_are_no_longer_there_to_be_watched():
    config = {
        "model": {"_target_": "lmkit.model.LSTM", "embedding_size": 4, "hidden_size": 4},
        "head": {"_target_": "lmkit.head.FullSoftmax"},
    }
    task = Task(*build_model(config, 5), lambda parameters: torch.optim.SGD(parameters, lr=0.1))
    task.validated, task._unseen = {"val/nll": 0.5}, True
    then = {"config": {}, "splits": {"train": "a", "valid": "b"}}
    now = {"config": {}, "splits": {"train": "a", "valid": "c"}}
    checkpoint = {"callbacks": {}, "lr_schedulers": []}
    Continuation(then, now).on_load_checkpoint(SimpleNamespace(callbacks=[]), task, checkpoint)
    assert (task.validated, task._unseen) == ({}, False)


def test_early_stopping_at_a_threshold_is_final_too():
    stopping = EarlyStopping("val/nll", patience=3, stopping_threshold=1.0)
    ended = stopping.state_dict() | {
        "stopping_reason": EarlyStoppingReason.STOPPING_THRESHOLD.value
    }
    for config, reason in (
        ({}, EarlyStoppingReason.STOPPING_THRESHOLD),
        ({"callbacks": {"early_stopping": {"patience": 4}}}, EarlyStoppingReason.NOT_STOPPED),
    ):
        checkpoint = {"callbacks": {stopping.state_key: dict(ended)}, "lr_schedulers": []}
        continuation = Continuation({"config": {}}, {"config": config, "splits": {}})
        continuation.on_load_checkpoint(SimpleNamespace(callbacks=[stopping]), None, checkpoint)
        (state,) = checkpoint["callbacks"].values()
        assert state["stopping_reason"] == reason.value


# ---- diverged


def test_a_run_that_has_diverged_goes_on_as_its_message_says(tmp_path, capsys):
    write_text(tmp_path / "text")
    run = train(
        tmp_path,
        *("run_id=run", "trainer.max_epochs=1", "optimizer=sgd", "optimizer.lr=1e10"),
        *("trainer.gradient_clip_val=null", "scheduler=linear", "scheduler.warmup_steps=12"),
        *("callbacks.checkpoint.every_n_train_steps=1", "callbacks.checkpoint.keep=50"),
        code=1,
    )
    err = capsys.readouterr().err
    assert "; begin another run with a lower optimizer.lr or a trainer.gradient_clip_val" in err
    began = {row["step"]: row["lr"] for row in rows(run) if "lr" in row}
    for path in sorted((run / "checkpoints").glob("step-*.ckpt"))[1:]:
        path.unlink()  # as if they were written less often
        path.with_suffix(".json").unlink()
    resume(run, "optimizer.lr=0.5", "trainer.gradient_clip_val=1")
    assert (
        "optimizer.lr=0.5 (10000000000.0 before), trainer.gradient_clip_val=1"
    ) in capsys.readouterr().err
    lrs = {row["step"]: row["lr"] for row in rows(run) if "lr" in row}
    assert lrs.pop(1) == began[1] == 1e10 * 2 / 13
    total = max(lrs)
    for step, lr in lrs.items():
        assert lr == 0.5 * ((step + 1) / 13 if step < 12 else 1 - (step - 12) / (total - 12))
    (entry,) = yaml.safe_load((run / "overrides.yaml").read_text())[-1:]
    assert entry["changed"]["optimizer.lr"] == [1e10, 0.5]
    resume(run, "optimizer.weight_decay=0.1", code=2)


@pytest.mark.parametrize("key", ["lr", "adam_lr", "groups.bias.lr"])
def test_each_rate_may_be_lowered_after_a_divergence_and_at_no_other_time(key):
    then, now = (nested(f"optimizer.{key}", rate) for rate in (1.0, 0.1))
    assert not list(refused(then, now, diverged=True))
    assert list(refused(then, now, diverged=False)) == [(f"optimizer.{key}", 1.0, 0.1)]


def nested(path, value):
    for key in reversed(path.split(".")):
        value = {key: value}
    return value


def test_a_run_that_has_not_diverged_keeps_its_rate(run, capsys):
    resume(run, "optimizer.lr=0.5", code=2)
    assert "only length, devices, precision and logging may change" in capsys.readouterr().err


# ---- names


@pytest.mark.parametrize("key", ["name", "sub_dir", "prefix"])
def test_a_variable_in_a_name_reaches_no_logger(tmp_path, capsys, monkeypatch, key):
    monkeypatch.setenv("MY_API_KEY", "canary00000000")
    write_text(tmp_path / "text")
    train(tmp_path, "logger=tensorboard", f"logger.tensorboard.{key}=tb-$MY_API_KEY", code=2)
    assert (
        f"logger.tensorboard.{key}=tb-$MY_API_KEY: lightning would put the value of a variable of "
        "the environment in the place of the $: leave it out"
    ) in capsys.readouterr().err
    assert not (tmp_path / "outputs").exists()


def test_a_variable_in_the_place_of_a_run_is_refused(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("MY_API_KEY", "canary00000000")
    write_text(tmp_path / "text")
    outputs = tmp_path / "$MY_API_KEY"
    train(tmp_path, f"outputs={outputs}", "run_id=run", code=2)
    assert f"error: {outputs}/t/run: loggers would put the value" in capsys.readouterr().err
    assert not outputs.exists()
