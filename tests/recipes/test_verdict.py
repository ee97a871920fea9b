"""Pass, fail, and neither: what a run must be to be compared with a published number."""

from typing import Any

import pytest

from lmkit.recipes.verdict import changes, not_whole, other_text, partly, reaches, verdict

RECIPE = {
    "name": "one",
    "seed": 1,
    "data": {"_target_": "Data", "path": "???", "bptt": 35},
    "model": {"_target_": "Model", "dropout": 0.5},
    "trainer": {
        "_target_": "Trainer",
        "max_epochs": 40,
        "max_steps": -1,
        "precision": "auto",
        "plugins": None,
    },
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
        {"callbacks": {"checkpoint": {"every_n_train_steps": 10}, "watchdog": {"minutes": 5}}},
        group("data", train_path="/there", valid_paths=["/here"]),
        group("trainer", num_sanity_val_steps=0, plugins=[]),
    ],
)
def test_these_change_no_result(run):
    assert changed(**run) == {}
    assert verdict({}, {}, [], [True, True]) == "pass"


@pytest.mark.parametrize(
    ("run", "key", "pair"),
    [
        (group("trainer", max_epochs=39), "trainer.max_epochs", (40, 39)),
        (group("trainer", max_steps=20), "trainer.max_steps", (None, 20)),
        (group("trainer", limit_test_batches=2), "trainer.limit_test_batches", (None, 2)),
        (group("trainer", overfit_batches=2), "trainer.overfit_batches", (None, 2)),
        (group("trainer", max_time="00:00:01:00"), "trainer.max_time", (None, "00:00:01:00")),
    ],
)
def test_these_cut_it_short(run, key, pair):
    assert changed(**run) == {key: pair}
    assert verdict(changed(**run), {}, [], [True]) == "cut short"
    assert verdict(changed(**run), {}, [], [False]) == "cut short"


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
    assert (
        verdict({**changed(**run), **short}, {}, ["train is missing"], [True]) == "other settings"
    )


ONE_CYCLE = {"_target_": "lmkit.optim.schedules.OneCycle"}


def resumed(*changed: dict[str, list[Any]]) -> list[Any]:
    return ["seed=1", *({"resumed": "2026-01-01", "changed": each} for each in changed)]


@pytest.mark.parametrize(
    ("record", "scheduler", "found"),
    [
        (resumed(), {}, {}),
        # Other devices and places, and a training that was only stopped: those change nothing.
        (resumed({"threads": [1, 2], "data.path": ["/a", "/b"]}), {}, {}),
        (resumed({"trainer.max_epochs": [2, 40], "trainer.max_steps": [5, -1]}), {}, {}),
        (resumed({"trainer.min_epochs": [3, "absent"]}), {}, {}),
        (resumed({"callbacks.early_stopping.patience": [2, "absent"]}), {}, {}),
        # The schedule is drawn over the length.
        (resumed({"trainer.max_epochs": [2, 40]}), ONE_CYCLE, {"trainer.max_epochs": (40, 2)}),
        (resumed({"trainer.max_steps": [5, -1]}), ONE_CYCLE, {"trainer.max_steps": (None, 5)}),
        (resumed({"trainer.max_time": ["1", "absent"]}), ONE_CYCLE, {}),
        # Away from the recipe and back.
        (
            resumed({"optimizer.lr": [2, 1]}, {"optimizer.lr": [1, 2]}),
            {},
            {"optimizer.lr": (2, 1)},
        ),
        (
            resumed(
                {"scheduler.milestones": ["absent", [3]]}, {"scheduler.milestones": [[3], None]}
            ),
            {},
            {"scheduler.milestones": (None, [3])},
        ),
    ],
)
def test_what_a_part_of_the_training_had_otherwise(record, scheduler, found):
    recipe = {**RECIPE, "optimizer": {"lr": 2}, "scheduler": scheduler}
    assert partly(recipe, record, {}, recipe) == found
    assert not_whole({}, found, []) == ("other settings" if found else None)


def test_a_resume_that_is_to_come_counts():
    then = {**RECIPE, "scheduler": ONE_CYCLE, **group("trainer", max_epochs=2)}
    now = {**RECIPE, "scheduler": ONE_CYCLE}
    assert partly(now, [], then, now) == {"trainer.max_epochs": (40, 2)}
    assert partly(now, [], {}, now) == {}  # the first start


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
    assert verdict({}, {}, ["valid is missing"], [True]) == "other text"


def test_pass_and_fail():
    assert reaches(100.9, 100.0, 1.0)
    assert not reaches(101.1, 100.0, 1.0)
    assert reaches(90.0, 100.0, 0.0)
    assert verdict({}, {}, [], [True, False]) == "fail"
    assert verdict({}, {}, [], [True]) == "pass"
