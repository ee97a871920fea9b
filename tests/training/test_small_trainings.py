"""Short trainings in this process, through the command line: what they log, and how they end."""

import json
from pathlib import Path

import pytest
import torch

from lmkit import cli
from lmkit.config.check import check
from lmkit.config.compose import compose
from lmkit.head import FullSoftmax, Loss

WORDS = ["the", "of", "and", "to", "in", "is", "that", "it", "was", "for", "on", "as", "with"]


@pytest.fixture
def settings(tmp_path, monkeypatch) -> list[str]:
    """A model of a thousand parameters over sixty paragraphs, one thread."""
    monkeypatch.chdir(tmp_path)
    lines = [" ".join(WORDS[(i * j) % len(WORDS)] for j in range(1, 9)) for i in range(60)]
    (tmp_path / "text.txt").write_text("\n\n".join(lines))
    for split in ("valid", "test"):
        (tmp_path / f"{split}.txt").write_text("\n\n".join(lines[:7]))
    model = ["model.embedding_size=8", "model.hidden_size=8", "model.num_layers=1"]
    data = ["data=files", "data.path=text.txt", "data.unit=paragraph", "data.batch_size=4"]
    data += ["data.valid_path=valid.txt", "data.test_path=test.txt"]
    own = ["tokenizer=word", "data.bptt=10", "threads=1", "trainer.precision=32-true", "name=a"]
    return ["train", "run_id=r", "kernels=torch", *data, *model, *own]


def rows() -> list[dict]:
    return [json.loads(line) for line in Path("outputs/a/r/metrics.jsonl").read_text().splitlines()]


def test_a_diverged_training_ends_in_a_sentence(settings, capfd, monkeypatch):
    loss = FullSoftmax.loss

    def broken(*arguments: torch.Tensor) -> Loss:
        return Loss(loss(*arguments).loss * float("nan"), torch.zeros(()))

    monkeypatch.setattr(FullSoftmax, "loss", broken)
    assert cli.main([*settings, "trainer.max_epochs=1"]) == 1
    said = capfd.readouterr().err
    assert "\nerror: the loss or its gradient is not finite at step " in said
    assert "Traceback" not in said
    status = json.loads(Path("outputs/a/r/status.json").read_text())
    assert (status["status"], status["exit_code"]) == ("failed", 1)
    assert status["reason"].startswith("NonFiniteError: the loss or its gradient is not finite")


def test_the_logged_nll_is_not_the_loss_divided_back(settings, monkeypatch):
    """A loss of other terms, as label smoothing, leaves the nll what it is."""
    keys = ["optimizer.lr=0", "trainer.max_epochs=1", "trainer.log_every_n_steps=1"]
    assert cli.main([*settings, *keys]) == 0
    expected = [row["train/nll"] for row in rows() if "train/nll" in row]
    loss = FullSoftmax.loss

    def smoothed(*arguments: torch.Tensor) -> Loss:
        found = loss(*arguments)
        return Loss(0.9 * found.loss + 0.1 * 5, found.nll)

    monkeypatch.setattr(FullSoftmax, "loss", smoothed)
    assert cli.main([*settings, *keys, "name=b"]) == 0
    lines = Path("outputs/b/r/metrics.jsonl").read_text().splitlines()
    assert [row["train/nll"] for row in map(json.loads, lines) if "train/nll" in row] == expected


@pytest.mark.parametrize(("interval", "every"), [(None, 1), ("epoch", 0)])
def test_the_logged_rates_are_those_of_torch(settings, interval, every):
    target = "scheduler._target_=torch.optim.lr_scheduler.OneCycleLR"
    keys = [target, "scheduler.max_lr=0.01", "scheduler.total_steps=100"]
    keys += [f"scheduler.interval={interval}"] if interval else []
    length = ["trainer.max_epochs=2", "trainer.log_every_n_steps=1"]
    assert cli.main([*settings, *keys, *length]) == 0
    found = [(row["step"], row["lr"]) for row in rows() if "lr" in row]
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.01, total_steps=100)
    rates = [schedule.get_last_lr()[0]]
    for _ in range(100):
        optimizer.step()
        schedule.step()
        rates.append(schedule.get_last_lr()[0])
    updates = found[-1][0]
    assert len(found) == updates > 10
    for step, lr in found:  # a row is written after the step of the schedule
        done = step if every else step // (updates // 2)
        assert lr == pytest.approx(rates[done], rel=1e-12), step


def test_a_schedule_that_ends_before_the_training_is_told_before_it(settings, capfd):
    target = "scheduler._target_=torch.optim.lr_scheduler.OneCycleLR"
    keys = [target, "scheduler.max_lr=0.01", "scheduler.total_steps=3", "trainer.max_epochs=2"]
    assert cli.main([*settings, *keys]) == 2
    assert "error: scheduler ends after 3 steps but the training has " in capfd.readouterr().err
    assert not Path("outputs/a/r/metrics.jsonl").exists()


def test_windows_of_one_position_are_trained_on(settings):
    length = ["trainer.max_steps=12", "trainer.log_every_n_steps=1"]
    assert cli.main([*settings, "data.bptt=1", *length]) == 0
    training = [row for row in rows() if "train/nll" in row]
    # The first window has reset positions alone: no target, so no mean.
    assert training[0]["step"] == 2
    assert all(row["train/nll"] is not None for row in training)


def test_what_a_command_makes_nothing_of_is_refused(settings, capfd):
    assert cli.main([*settings, "trainer.max_epochs=1"]) == 0
    capfd.readouterr()
    assert cli.main(["evaluate", "r", "optimizer.lr=3", "seed=2", "data.batch_size=8"]) == 2
    reads = "reads data, kernels, threads, trainer.accelerator, trainer.precision of the config"
    assert capfd.readouterr().err.splitlines() == [
        "error: 2 mistakes:",
        f"  optimizer.lr=3: lmkit evaluate {reads}",
        f"  seed=2: lmkit evaluate {reads}",
    ]
    assert cli.main(["evaluate", "r", "trainer=cpu", "threads=1", "num_lanes=2"]) == 0
    assert cli.main(["generate", "r", "data.bptt=3"]) == 2
    assert cli.main(["generate", "r", "num_tokens=3", "kernels=torch"]) == 0


def test_a_run_whose_names_look_like_numbers_is_found_again(settings):
    odd = ["run_id=12e3", "name=0123", "trainer.max_epochs=1"]
    assert cli.main([*(s for s in settings if s not in ("run_id=r", "name=a")), *odd]) == 0
    assert cli.main(["resume", "12e3", "trainer.max_epochs=2"]) == 0
    base = Path("outputs/0123/12e3/config.yaml")
    config, _ = check(compose([], base))
    assert (config["run_id"], config["name"]) == ("12e3", "0123")


def contents(directory: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


CYCLE = ["scheduler._target_=torch.optim.lr_scheduler.OneCycleLR", "scheduler.max_lr=0.01"]


def test_a_schedule_shorter_than_its_training_leaves_no_run_behind(settings, capfd):
    length = ["trainer.max_epochs=2", "trainer.accumulate_grad_batches=2"]
    assert cli.main([*settings, *CYCLE, "scheduler.total_steps=10", *length]) == 2
    said = capfd.readouterr().err.splitlines()[-1]
    assert said.startswith("error: scheduler ends after 10 steps but the training has ")
    assert not Path("outputs/a").exists()
    wanted = said.rpartition("; set ")[2]
    assert cli.main([*settings, *CYCLE, wanted, *length]) == 0
    assert wanted == f"scheduler.total_steps={rows()[-1]['step']}"


def test_a_finished_run_that_cannot_be_made_longer_stays_as_it_is(settings, capfd):
    length = ["scheduler.total_steps=500", "trainer.max_steps=500", "trainer.max_epochs=1"]
    assert cli.main([*settings, *CYCLE, *length]) == 0
    before = contents(Path("outputs/a/r"))
    assert cli.main(["resume", "r", "trainer.max_epochs=1000", "trainer.max_steps=501"]) == 2
    assert "scheduler.total_steps=501" in capfd.readouterr().err
    assert cli.main(["resume", "r", "run_id=zz", "++name=zz", "trainer.max_epochs=2"]) == 2
    assert capfd.readouterr().err.splitlines()[1:] == [
        "  run_id=zz: the run stays a/r; leave it out",
        "  ++name=zz: the run stays a/r; leave it out",
    ]
    assert cli.main(["resume", "r"]) == 0
    assert capfd.readouterr().err.splitlines()[-1] == (
        "a/r has ended and stays as it is; to train longer: lmkit resume r trainer.max_epochs=N "
        "(or with more of trainer.max_steps, whichever ended it)"
    )
    assert contents(Path("outputs/a/r")) == before


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (
            ["trainer.val_check_interval=1000"],
            "  trainer.val_check_interval=1000 but an epoch has 15 windows: set "
            "trainer.check_val_every_n_epoch=null to count them over all epochs, or "
            "trainer.val_check_interval=15",
        ),
        (
            ["trainer.max_epochs=2", "trainer.min_steps=1000"],
            "  trainer.max_epochs=2 are 30 updates but trainer.min_steps=1000: raise the one or "
            "lower the other",
        ),
        (["data.batch_size=541"], "error: data.batch_size=541: train has 540 tokens; lower it"),
        (
            [
                "trainer.max_epochs=2",
                "scheduler={_target_: torch.optim.lr_scheduler.ChainedScheduler, schedulers: "
                "[{_target_: torch.optim.lr_scheduler.OneCycleLR, max_lr: 0.1, total_steps: 5}]}",
            ],
            "error: scheduler.schedulers.0 ends after 5 steps but the training has 30; give it "
            "total_steps=30",
        ),
    ],
)
@pytest.mark.parametrize("command", ["train", "doctor"])
def test_what_does_not_fit_the_text_is_told_by_both(settings, capfd, command, keys, said):
    given = settings[1:]
    assert cli.main([command, *given, *keys]) == 2
    assert capfd.readouterr().err.splitlines()[-1] == said
    assert not Path("outputs/a").exists()


@pytest.mark.parametrize(("limit", "tokens"), [("3", 108), ("null", 540)])
def test_the_epoch_that_is_announced_is_the_one_that_is_read(settings, capfd, limit, tokens):
    keys = [f"trainer.limit_train_batches={limit}", "trainer.max_epochs=1"]
    assert cli.main([*settings, *keys]) == 0  # three of fifteen windows
    assert f" here: {tokens} tokens an epoch, " in capfd.readouterr().err


def test_a_multirun_over_the_runs_of_another_is_refused_before_it_begins(settings, capfd):
    keys = ["trainer.max_steps=1", "callbacks.samples=null"]
    assert cli.main([*settings, *keys, "run_id=m-1", "seed=7"]) == 0
    before = contents(Path("outputs"))
    assert cli.main(["train", "-m", *settings[2:], *keys, "run_id=m", "seed=5,6"]) == 2
    said = capfd.readouterr().err
    assert "run_id=m-1 has another config (" in said
    assert "seed: 7 there, 6 now" in said
    assert contents(Path("outputs")) == before


def test_a_text_of_unknown_words_is_told(settings, caplog):
    keys = ["tokenizer.min_frequency=1000", "trainer.max_steps=1", "callbacks.samples=null"]
    assert cli.main([*settings, *keys]) == 0
    assert [m.split(":")[0] for m in caplog.messages if "tokens are unknown" in m] == [
        "train",
        "valid",
        "test",
    ]


def test_more_lanes_than_tokens_are_refused(settings, capfd):
    assert cli.main([*settings, "data.batch_size=100000000"]) == 2
    said = capfd.readouterr().err.splitlines()[-1]
    assert said == "error: data.batch_size=100000000: train has 540 tokens; lower it"
    assert cli.main([*settings, "data.eval_batch_size=541"]) == 2
    said = capfd.readouterr().err.splitlines()[-1]
    assert said == "error: data.eval_batch_size=541: no split has more than 540 tokens; lower it"
    assert not Path("outputs/a").exists()
    assert cli.main([*settings, "data.batch_size=540", "trainer.max_steps=1"]) == 0


def test_a_tokenizer_that_makes_nothing_of_the_text_is_refused(settings, capfd, tmp_path):
    model = {"type": "WordLevel", "vocab": {"<eos>": 0, "a": 1}, "unk_token": "a"}
    normalizer = {"type": "Replace", "pattern": {"Regex": "."}, "content": ""}
    file = {"version": "1.0", "model": model, "normalizer": normalizer}
    (tmp_path / "tokenizer.json").write_text(json.dumps(file))
    wanted = ["tokenizer=pretrained", "tokenizer.path=tokenizer.json"]
    given = [each for each in settings if each != "tokenizer=word"]
    assert cli.main([*given, *wanted]) == 2
    said = capfd.readouterr().err.splitlines()[-1]
    assert said.startswith("error: the 60 documents of train have no tokens but those that close")
    assert not Path("outputs/a").exists()


def test_a_schedule_of_a_training_that_a_clock_ends_is_compared_too(settings, capfd):
    length = ["trainer.max_epochs=2", "trainer.max_time=00:01:00:00"]
    assert cli.main([*settings, *CYCLE, "scheduler.total_steps=10", *length]) == 2
    assert "error: scheduler ends after 10 steps but the training has " in capfd.readouterr().err
    assert not Path("outputs/a").exists()


def test_a_schedule_by_epochs_is_compared_with_those_that_the_steps_make(settings):
    length = ["trainer.max_steps=20", "trainer.max_epochs=-1", "scheduler.interval=epoch"]
    assert cli.main([*settings, *CYCLE, "scheduler.total_steps=10", *length]) == 0
    # Of two epochs and a part of a third, after which it makes no step.
    length[0] = "trainer.max_steps=35"
    assert cli.main([*settings, *CYCLE, "scheduler.total_steps=2", *length, "run_id=b"]) == 0
