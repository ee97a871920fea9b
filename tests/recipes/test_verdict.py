"""Pass, fail, and neither: what a run must be to be compared with a published number."""

from typing import Any

import pytest

from lmkit.recipes.verdict import changes, other_text, reaches, verdict

RECIPE = {
    "name": "one",
    "seed": 1,
    "data": {"_target_": "Data", "path": "???", "bptt": 35},
    "model": {"_target_": "Model", "dropout": 0.5},
    "trainer": {"_target_": "Trainer", "max_epochs": 40, "max_steps": -1, "precision": "auto"},
    "scheduler": None,
    "recipe": {"valid": 1.0},
}


def changed(**groups: Any) -> dict[str, tuple[Any, Any]]:
    run = {**RECIPE, "scheduler": {}, **groups}
    return changes(RECIPE, run)


def group(name: str, **keys: Any) -> dict[str, Any]:
    return {name: {**RECIPE[name], **keys}}  # type: ignore[dict-item]


@pytest.mark.parametrize(
    "run",
    [
        {},
        {"seed": 7, "name": "other", "threads": 2, "recipe": None, "restarts": 0},
        group("data", path="/there"),
        group("trainer", precision="bf16-mixed", accelerator="cuda", devices=2, max_steps=None),
        {"logger": {"csv": {"_target_": "Logger"}}},
        {"callbacks": {"checkpoint": {"every_n_train_steps": 10}}},
    ],
)
def test_these_change_no_result(run):
    assert changed(**run) == {}
    assert verdict({}, [], [True, True]) == "pass"


@pytest.mark.parametrize(
    ("run", "key", "pair"),
    [
        (group("trainer", max_epochs=39), "trainer.max_epochs", (40, 39)),
        (group("trainer", max_steps=20), "trainer.max_steps", (None, 20)),
        (group("trainer", limit_test_batches=2), "trainer.limit_test_batches", (None, 2)),
        (group("trainer", max_time="00:00:01:00"), "trainer.max_time", (None, "00:00:01:00")),
    ],
)
def test_these_cut_it_short(run, key, pair):
    assert changed(**run) == {key: pair}
    assert verdict(changed(**run), [], [True]) == "cut short"
    assert verdict(changed(**run), [], [False]) == "cut short"


@pytest.mark.parametrize(
    ("run", "key", "pair"),
    [
        (group("trainer", max_epochs=41), "trainer.max_epochs", (40, 41)),
        (group("trainer", max_epochs=-1), "trainer.max_epochs", (40, None)),
        (group("model", dropout=0.4), "model.dropout", (0.5, 0.4)),
        (group("model", zoneout=0.1), "model.zoneout", (None, 0.1)),
        (group("data", bptt=36), "data.bptt", (35, 36)),
        ({"init": "outputs/other/run"}, "init", (None, "outputs/other/run")),
        ({"callbacks": {"stop": {"patience": 3}}}, "callbacks.stop.patience", (None, 3)),
        ({"scheduler": {"gamma": 0.5}}, "scheduler.gamma", (None, 0.5)),
    ],
)
def test_these_are_other_settings(run, key, pair):
    assert changed(**run) == {key: pair}
    short = {"trainer.max_steps": (None, 3)}
    assert verdict({**changed(**run), **short}, ["train is missing"], [True]) == "other settings"


def test_another_text():
    published = {"train": 929_589, "valid": 73_760, "test": 82_430}
    assert list(other_text(published, published)) == []
    assert list(other_text(None, {"train": 1})) == []
    assert list(other_text(published, {"train": 929_589, "valid": 73_759})) == [
        "valid has 73,759 tokens, the published one 73,760",
        "test is missing, the published one 82,430",
    ]
    # A cut by bytes within a character, and <eos> at the end of a split.
    assert list(other_text({"train": 90_000_000}, {"train": 90_000_004})) == []
    assert verdict({}, ["valid is missing"], [True]) == "other text"


def test_pass_and_fail():
    assert reaches(100.9, 100.0, 1.0)
    assert not reaches(101.1, 100.0, 1.0)
    assert reaches(90.0, 100.0, 0.0)
    assert verdict({}, [], [True, False]) == "fail"
    assert verdict({}, [], [True]) == "pass"
