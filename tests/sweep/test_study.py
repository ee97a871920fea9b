"""The database of a sweep: draws, grids, pruning, and going on after the process died."""

import math
from itertools import product

import pytest

from lmkit.errors import UserError
from lmkit.sweep.report import trial_record
from lmkit.sweep.search import Dimension
from lmkit.sweep.study import Study

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


SMALL = (
    Dimension("model", "model=..", ("lstm", "gru")),
    Dimension("size", "size=..", low=1, high=8, log=True),
    Dimension("lr", "lr=..", ("1e-3", "1e-2")),
)


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_every_combination_is_drawn_once_and_then_there_is_none(tmp_path, sampler):
    drawn = []
    for _ in range(3):  # also by a process that goes on
        trials = study(tmp_path, sampler=sampler, dimensions=SMALL)
        for _ in range(12):
            if (trial := trials.ask()) is not None:
                drawn.append(tuple(trial.params.items()))
                trials.tell(trial, "finished", 1.0)
    every = product(("lstm", "gru"), range(1, 9), ("1e-3", "1e-2"))
    assert len(drawn) == 32
    assert set(drawn) == {(("model", m), ("size", s), ("lr", r)) for m, s, r in every}
    assert trials.size() == 32


def test_a_kill_between_the_draw_and_the_start_changes_nothing(tmp_path):
    (tmp_path / "once").mkdir()
    (tmp_path / "cut").mkdir()
    once = draw(study(tmp_path / "once"), 3)
    trials = study(tmp_path / "cut")
    cut = draw(trials, 1)
    trials._study.enqueue_trial(trials._draw())  # `ask`, ended half-way
    again = study(tmp_path / "cut")
    assert again.num_started() == 1
    assert [*cut, *draw(again, 2)] == once


def test_what_the_machine_ended_goes_on_and_counts_for_nothing_before(tmp_path):
    trials = study(tmp_path)
    trial = trials.ask()
    trials.interrupt(trial, "killed by SIGKILL")
    record = trial_record(trials.trials()[0], {})
    assert (record["outcome"], record["why"]) == ("interrupted", "killed by SIGKILL")
    assert trials.unfinished() is None, "by the next process alone"
    again = study(tmp_path)
    taken = again.unfinished()
    assert (taken.number, taken.params) == (0, trial.params)
    assert trial_record(again.trials()[0], {})["outcome"] == "running"
    again.tell(taken, "finished", 2.0)
    assert again.trials()[0].value == 2.0


def test_a_trial_that_was_finished_by_hand_is_heard_again(tmp_path):
    trials = study(tmp_path)
    values = draw(trials, 1)
    failed = trials.ask()
    trials.prunes(failed, [3.0, 2.5])
    trials.tell(failed, "failed", why="exit code 1")
    values.append(dict(failed.params))
    trials.reopen([1])
    again = trials.unfinished()
    assert again.number == 1
    assert not trials.prunes(again, [3.0, 2.5, 2.0])
    trials.tell(again, "finished", 2.0)
    for each in (trials, study(tmp_path)):
        assert [trial.params for trial in each.trials()] == values
        assert [trial.value for trial in each.trials()] == [1.0, 2.0]
        assert trial_record(each.trials()[1], {})["validations"] == [3.0, 2.5, 2.0]
    assert [path.name for path in tmp_path.iterdir()] == ["study.db"]


@pytest.mark.parametrize("harm", [lambda data: b"x" * 8192, lambda data: data[:9000]])
def test_a_damaged_database_is_a_sentence(tmp_path, harm):
    draw(study(tmp_path), 2)
    file = tmp_path / "study.db"
    file.write_bytes(harm(file.read_bytes()))
    with pytest.raises(
        UserError, match=r"study.db is damaged \(.*\): put back a copy of it, or be"
    ):
        draw(study(tmp_path), 2)


def test_a_directory_of_any_name_holds_a_database(tmp_path):
    place = tmp_path / "100%25?a=#b"
    place.mkdir()
    draw(study(place), 1)
    assert [path.name for path in place.iterdir()] == ["study.db"]
