"""The database of a sweep: draws, grids, pruning, and going on after the process died."""

import math

import pytest

from lmkit.search import Dimension
from lmkit.study import Study

DIMENSIONS = (
    Dimension("lr", "lr=..", low=1e-4, high=1e-1, log=True),
    Dimension("size", "size=..", low=10, high=400),
    Dimension("model", "model=..", ("lstm", "gru")),
)


def study(place, **settings) -> Study:
    given = {"sampler": "random", "pruner": "none", "warmup": (2, 1), "seed": 3, **settings}
    return Study(place / "study.db", given.pop("dimensions", DIMENSIONS), **given)


def draw(trials: Study, number: int, sampler_value: float = 1.0) -> list[dict]:
    drawn = []
    for _ in range(number):
        trial = trials.ask()
        drawn.append(dict(trial.params))
        trials.tell(trial, "finished", sampler_value)
    return drawn


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_draws_do_not_depend_on_how_often_a_sweep_was_started(tmp_path, sampler):
    (tmp_path / "once").mkdir()
    (tmp_path / "often").mkdir()
    once = draw(study(tmp_path / "once", sampler=sampler), 14)
    often = [draw(study(tmp_path / "often", sampler=sampler), 7) for _ in range(2)]
    assert [*often[0], *often[1]] == once
    assert len({tuple(values.items()) for values in once}) == 14


def test_draws_are_inside_and_of_their_kind(tmp_path):
    for values in draw(study(tmp_path), 30):
        assert 1e-4 <= values["lr"] <= 1e-1
        assert isinstance(values["size"], int)
        assert 10 <= values["size"] <= 400
        assert values["model"] in ("lstm", "gru")


def test_a_trial_whose_process_died_goes_on_first_with_its_values(tmp_path):
    trials = study(tmp_path)
    draw(trials, 1)
    left = [trials.ask(), trials.ask()]
    again = study(tmp_path)
    found = [again.unfinished(), again.unfinished()]
    assert [t.number for t in found] == [1, 2]
    assert [t.params for t in found] == [t.params for t in left]
    assert again.unfinished() is None
    assert again.num_started() == 3


def test_a_grid_is_taken_in_order_each_point_once(tmp_path):
    points = [{"model": "lstm"}, {"model": "gru"}]
    dimensions = DIMENSIONS[2:]
    grid = {"sampler": "grid", "points": points, "dimensions": dimensions}
    assert draw(study(tmp_path, **grid), 1) == points[:1]
    again = study(tmp_path, **grid)
    assert again.num_started() == 1
    assert draw(again, 1) == points[1:]
    assert len(again.trials()) == 2


def test_the_median_prunes_what_is_worse_than_those_that_finished(tmp_path):
    trials = study(tmp_path, pruner="median")
    for values in ([5.0, 4.0, 3.0], [5.2, 4.2, 3.2]):
        trial = trials.ask()
        assert not trials.prunes(trial, values)
        trials.tell(trial, "finished", values[-1])
    good, bad = trials.ask(), trials.ask()
    assert not trials.prunes(good, [4.9, 3.9])
    assert not trials.prunes(bad, [])
    assert trials.prunes(bad, [9.0, 8.0])
    assert trials.prunes(bad, [9.0, 8.0])  # again, as after a restart
    assert trials.prunes(trials.ask(), [math.nan])


def test_halving_keeps_the_best_third(tmp_path):
    trials = study(tmp_path, pruner="halving")
    pruned = [trials.prunes(trials.ask(), [value]) for value in (1.0, 3.0, 4.0, 0.5)]
    assert pruned == [False, True, True, False]
