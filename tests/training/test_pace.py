"""Threads at the start of a training, on the way and when it goes on."""

import json
from types import SimpleNamespace

import pytest
import torch

from lmkit.run import Run
from lmkit.system import threads
from lmkit.system.threads import Threads
from lmkit.training import first_pace
from lmkit.training.estimate import Estimate, lasting
from lmkit.training.pace import Pace


@pytest.fixture(autouse=True)
def restored():
    with threads.use(None):
        yield


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        *((0.2, "1 s"), (59, "59 s"), (61, "1 min"), (196, "3 min 20 s"), (1000, "17 min")),
        *((3599, "60 min"), (9000, "2.5 h"), (200_000, "2 days")),
    ],
)
def test_a_time_is_said_as_exactly_as_it_is_known(seconds, said):
    assert lasting(seconds) == said


def begin(
    tmp_path,
    monkeypatch,
    chosen,
    *,
    any_threads,
    before=None,
    was_set=False,
    overrides=(),
    steps=100,
):
    """`first_pace` of a run, continued if `before`, where a trial would choose `chosen`."""
    asked = []

    def estimate(config, data, **settings):
        asked.append(config["threads"])
        number = config["threads"] or chosen
        tried = Threads(2, number)
        tried.rates = {2: 2000.0, 1: 3100.0}
        return Estimate(400_000, 10, tried.rates[number], 1, tried, any_threads, steps, 500.0)

    monkeypatch.setattr(first_pace, "estimate", estimate)
    run = Run(tmp_path / "outputs" / "tiny" / "run")
    config = {"threads": before}
    if before:
        run.path.mkdir(parents=True)
        run.write("config.yaml", config)
        if not was_set:
            (run.path / "threads.jsonl").touch()
    if any(each.startswith("threads=") for each in overrides):
        config = {"threads": int(overrides[0].partition("=")[2])}
    pace = first_pace.first_pace(run, config, list(overrides), None)
    return (pace.threads.number, pace.threads.fixed, pace.is_set), asked


def test_a_training_begins_with_the_number_that_a_trial_chooses(tmp_path, monkeypatch, capsys):
    found, asked = begin(tmp_path, monkeypatch, 1, any_threads=True)
    assert (found, asked) == ((1, False, False), [None])
    assert capsys.readouterr().err == (
        "the training will take about 8 min 20 s here: 400,000 tokens an epoch, "
        "3,100 tokens/s with 1 thread (2,000 with 2)\n"
    )


def test_an_unending_training_is_told_by_its_epoch(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Estimate, "seconds", float("inf"))
    begin(tmp_path, monkeypatch, 2, any_threads=True, steps=float("inf"))
    assert capsys.readouterr().err.startswith("an epoch will take about 3 min 20 s here: ")


def test_a_run_that_goes_on_keeps_its_number_where_its_bits_ask_for_it(
    tmp_path, monkeypatch, capsys
):
    found, _ = begin(tmp_path, monkeypatch, 1, any_threads=False, before=2)
    assert found == (2, True, False)
    assert capsys.readouterr().err.endswith(
        "2 threads as before, so that the run goes on bit for bit; threads=1 computed 1.6 times as "
        "fast here now\n"
    )


def test_a_slower_number_is_not_said_to_compute_faster(tmp_path, monkeypatch, capsys):
    begin(tmp_path, monkeypatch, 2, any_threads=False, before=1)
    said = "1 thread as before, so that the run goes on bit for bit\n"
    assert capsys.readouterr().err.endswith(said)


def test_a_run_that_goes_on_takes_the_fastest_where_no_bit_depends_on_it(tmp_path, monkeypatch):
    found, asked = begin(tmp_path, monkeypatch, 1, any_threads=True, before=2)
    assert (found, asked) == ((1, False, False), [None])


def test_a_run_without_a_checkpoint_says_that_it_begins_again(tmp_path, monkeypatch, capsys):
    begin(tmp_path, monkeypatch, 1, any_threads=True, before=2)
    assert capsys.readouterr().err.startswith("run has no checkpoint yet: it begins again\nthe tra")


@pytest.mark.parametrize("record", [["seed=1"], ["threads=2"], [{"overrides": ["threads=2"]}]])
def test_a_number_that_no_command_has_set_is_said(tmp_path, monkeypatch, capsys, record):
    monkeypatch.setattr(first_pace, "newest_manifest", lambda directory: (None, {"step": 50}))
    monkeypatch.setattr(Run, "read", lambda run, name: record)
    monkeypatch.setattr(Run, "config", lambda run: {"threads": 2})
    found, _ = begin(tmp_path, monkeypatch, 1, any_threads=True, before=2, was_set=True)
    assert found == (2, True, True)
    said = (
        "run has no threads.jsonl, which would say that its threads were chosen: it keeps 2 "
        "threads, as set; with threads=null they are chosen anew\n"
    )
    assert (said in capsys.readouterr().err) == (record == ["seed=1"])


def test_a_training_of_no_steps_is_none_to_divide_by(tmp_path, monkeypatch):
    found, _ = begin(tmp_path, monkeypatch, 2, any_threads=True, steps=0)
    assert found == (2, False, False)


def test_where_nothing_is_left_no_time_is_told(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(first_pace, "newest_manifest", lambda directory: (None, {"step": 100}))
    begin(tmp_path, monkeypatch, 1, any_threads=True, before=1, steps=100)
    assert capsys.readouterr().err == ""


def test_a_number_that_is_set_is_kept_also_by_a_run_that_goes_on(tmp_path, monkeypatch):
    now = {"before": 1, "overrides": ["threads=2"]}
    for place, given in (("now", now), ("then", {"before": 2, "was_set": True})):
        found, asked = begin(tmp_path / place, monkeypatch, 1, any_threads=True, **given)
        assert (found, asked) == ((2, True, True), [2])


def test_a_change_on_the_way_is_said_and_written_down(tmp_path, monkeypatch, caplog):
    pace = Threads(2, 2, 6000.0)
    callback = Pace(pace, tmp_path, is_set=False)
    trainer = SimpleNamespace(global_step=7, current_epoch=0, lightning_module=None)
    worked = iter([None, "going on with 1 thread instead of 2"])
    monkeypatch.setattr(pace, "worked", lambda tokens, seconds: next(worked))
    module = SimpleNamespace(device=torch.device("cpu"))
    batch = SimpleNamespace(num_targets=5)
    callback.on_train_start(trainer, module)
    for _ in range(2):
        callback.on_train_batch_end(trainer, module, None, batch, 0)
    callback.on_validation_start(trainer, module)  # the time of a validation is none of training's
    callback.on_train_batch_end(trainer, module, None, batch, 0)
    assert caplog.messages == ["going on with 1 thread instead of 2"]
    rows = map(json.loads, (tmp_path / "threads.jsonl").read_text().splitlines())
    chosen = {"step": 7, "threads": 2, "tokens_per_second": {"2": 6000}}
    assert list(rows) == [
        {**chosen, "message": "chosen for the start"},
        {**chosen, "message": "going on with 1 thread instead of 2"},
    ]


def test_where_the_number_is_set_nothing_is_written(tmp_path):
    trainer = SimpleNamespace(global_step=7, current_epoch=0, lightning_module=None)
    Pace(Threads(2, 2), tmp_path, is_set=True).on_train_start(trainer, None)
    assert not list(tmp_path.iterdir())
