"""Accuracies and their intervals against resampling item by item."""

import numpy as np
import pytest

from lmkit.suite.accuracy import Verdict, accuracies, references, resampled
from lmkit.suite.formula import Outcome
from lmkit.suite.items import GOOD_IS_LIKELIER, Item, Suite, pair

YES, NO, TIE = Outcome(True, False), Outcome(False, False), Outcome(False, True)
LEVELS = {"field": {"a": "one", "b": "one", "c": "two"}}


def suite(groups, **settings):
    items = tuple(pair(str(n), group, "good", "bad") for n, group in enumerate(groups))
    return Suite("pairs", items, **settings)


def test_counts_and_means():
    verdicts = [
        *(Verdict((YES,), True), Verdict((NO,), False), Verdict((TIE,), False)),
        Verdict((YES,), False),
        Verdict((NO,), True),
    ]
    found = accuracies(suite("aaabc", levels=LEVELS), verdicts)
    a, b, c = (found["groups"][group] for group in "abc")
    assert (a["accuracy"], b["accuracy"], c["accuracy"]) == (pytest.approx(1 / 3), 1, 0)
    assert (a["num_items"], a["num_correct"], a["num_ties"], a["num_unknown"]) == (3, 1, 1, 1)
    assert (b["low"], b["high"]) == (1, 1)
    # Means over groups, however many items they have.
    assert found["levels"]["field"]["one"]["accuracy"] == pytest.approx(2 / 3)
    assert found["overall"]["accuracy"] == pytest.approx(4 / 9)
    counts = ("num_groups", "num_items", "num_correct", "num_ties", "num_unknown")
    assert [found["overall"][count] for count in counts] == [3, 5, 2, 1, 2]


def test_several_predictions_of_an_item():
    item = Item("1", "a", {"good": {1: "x"}, "bad": {1: "y"}}, (GOOD_IS_LIKELIER,) * 2)
    verdicts = [Verdict((YES, NO), False), Verdict((YES, TIE), False)]
    found = accuracies(Suite("x", (item, item), is_pairs=False), verdicts)["groups"]["a"]
    assert (found["num_items"], found["num_predictions"], found["num_correct"]) == (2, 4, 2)
    assert [each["accuracy"] for each in found["predictions"]] == [1, 0]
    assert (found["low"], found["accuracy"], found["high"]) == (0.5, 0.5, 0.5)


@pytest.mark.parametrize("shares", [[1.0] * 30 + [0.0] * 10, [1.0, 0.5, 0.5, 0.0, 1.0]])
def test_resamples_are_those_of_drawing_items(shares):
    shares = np.array(shares)
    generator = np.random.default_rng(0)
    slow = generator.choice(shares, size=(20_000, len(shares))).mean(axis=1)
    fast = resampled(shares, "group")
    for mean in np.unique(slow):  # the two distribution functions
        below = mean + 1e-9
        assert (fast < below).mean() == pytest.approx((slow < below).mean(), abs=0.02)


def test_an_interval_does_not_depend_on_other_groups():
    verdicts = [Verdict((outcome,), False) for outcome in (YES, NO, YES, NO, YES)]
    alone = accuracies(suite("bbb"), verdicts[2:])
    together = accuracies(suite("aabbb"), verdicts)
    assert alone["groups"]["b"] == together["groups"]["b"]


def test_references_are_means_of_their_groups():
    found = references(
        suite(
            "abc",
            levels=LEVELS,
            references={"lstm": {"a": 0.5, "b": 0.7, "c": 0.9, "d": 0}, "part": {"a": 1.0}},
        )
    )
    assert found == {
        "lstm": {
            "overall": pytest.approx(0.7),
            "levels": {"field": {"one": pytest.approx(0.6), "two": 0.9}},
            "groups": {"a": 0.5, "b": 0.7, "c": 0.9},
        }
    }
