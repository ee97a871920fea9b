"""What is shown of a sweep while it runs."""

import math
from types import SimpleNamespace

import pytest

from lmkit.sweep.board import Board
from lmkit.sweep.search import split
from lmkit.sweep.study import Study

LIMITS = {"max_steps": 400, "max_epochs": -1}


@pytest.fixture
def study(tmp_path):
    """A study of four trials."""
    search = split(["seed=1,2,3,4"], ())
    given = {"sampler": "grid", "pruner": "none", "warmup": (1, 1), "seed": 1}
    return Study(tmp_path / "study.db", search.dimensions, points=search.grid(), **given)


def process(step: int, *values: float, rate: float | None = None, **row: float) -> SimpleNamespace:
    """What a board reads of the process of a trial."""
    row |= {"step": step, "train/tokens_per_second": rate} if step else {}
    return SimpleNamespace(row=row, values=list(values), best=min(values, default=None))


def test_a_line_every_ten_seconds(study, clock, capfd):
    """Four trials, of which half a one takes ten seconds, in two slots: thirty more."""
    board = Board(study, 4, "val/nll", {}, LIMITS)
    first, second = study.ask(), study.ask()
    for seconds, done in ((1, 0), (9, 180), (10, 200), (19, 300)):
        clock[0] = 100.0 + seconds
        pairs = [(first, process(done, *[math.log(90)] * (done > 0), rate=2400.0))]
        board.show([*pairs, (second, process(done))])
    out, err = capfd.readouterr()
    assert (out, err.splitlines()) == (
        "",
        [
            "0/4  trial 0  step 200  val/perplexity 90.00  2,400 tokens/s  trial 1  step 200  "
            "0:00:30 left"
        ],
    )


def test_the_time_left_counts_what_was_trained_since(study, clock, capfd):
    """A trial that an earlier process of the sweep had trained to three quarters, and a whole one
    after it, of its own length."""
    board = Board(study, 3, "val/nll", {}, {"max_steps": -1, "max_epochs": 8})
    first = study.ask()
    board.show([(first, process(60, epoch=6))])
    clock[0] += 5
    study.tell(first, "finished", math.log(90))
    board.ended(0)
    second = study.ask()
    board.show([(second, process(0))])
    clock[0] += 10
    board.show([(second, process(40, epoch=4))])  # 3/4 in 15 seconds, and 1 1/2 to come
    assert capfd.readouterr().err.splitlines() == [
        "1/3  trial 0 finished  seed=1  val/perplexity 90.00",
        "1/3  trial 1  step 40  0:00:30 left",
    ]


def test_a_trial_that_varies_its_length_is_measured_by_its_own(study, clock, capfd, tmp_path):
    search = split(["trainer.max_steps=100,200"], ())
    given = {"sampler": "grid", "pruner": "none", "warmup": (1, 1), "seed": 1}
    lengths = Study(tmp_path / "other.db", search.dimensions, points=search.grid(), **given)
    shown = {"trainer.max_steps": {"100": 100, "200": 200}}
    board = Board(lengths, 2, "val/nll", shown, LIMITS)
    trial = lengths.ask()
    board.show([(trial, process(0))])
    clock[0] += 12
    board.show([(trial, process(50))])
    assert capfd.readouterr().err.splitlines() == ["0/2  trial 0  step 50  0:00:36 left"]


def test_without_a_length_no_time_is_told(study, clock, capfd):
    board = Board(study, 4, "val/bits_per_byte", {}, {"max_steps": -1, "max_epochs": -1})
    trial = study.ask()
    board.show([(trial, process(0))])
    clock[0] += 12
    board.show([(trial, process(50, 1.5))])
    assert capfd.readouterr().err.splitlines() == [
        "0/4  trial 0  step 50  val/bits_per_byte 1.5000"
    ]
