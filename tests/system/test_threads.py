"""The number of threads, chosen by speeds that are made up here."""

import pytest
import torch

from lmkit.system import threads
from lmkit.system.threads import AGAIN, BLOCK, LOOK, Threads, trial


@pytest.fixture(autouse=True)
def restored():
    with threads.use(None):
        yield


def tried(most, speeds, current=None):
    """The numbers that a trial asks for, and its choice."""
    asked = []
    going = trial(most, current)
    number = next(going)
    while True:
        asked.append(number)
        try:
            number = going.send(speeds[number])
        except StopIteration as best:
            return asked, best.value


@pytest.mark.parametrize(
    ("speeds", "asked", "best"),
    [
        ({1: 3700, 2: 6000}, [2, 1, 2, 1], 2),
        ({1: 3700, 2: 2400}, [2, 1, 1, 2], 1),
        ({1: 3700, 2: 3600}, [2, 1, 1, 2], 2),  # as good as equal: more, for when cores are free
        ({1: 100, 2: 190, 4: 300, 8: 320, 16: 250}, [16, 8, 4, 2, 8, 4], 8),
        ({1: 100}, [1], 1),
    ],
)
def test_a_trial_halves_until_that_costs_and_tries_the_best_two_twice(speeds, asked, best):
    assert tried(max(speeds), speeds) == (asked, best)


def test_what_is_hardly_faster_is_not_worth_a_change():
    assert tried(2, {1: 3600, 2: 3700}, current=1)[1] == 1
    assert tried(2, {1: 3600, 2: 3900}, current=1)[1] == 2


def work(pace, speeds, seconds, piece=0.1):
    """Have so many seconds of work done at the speeds of this moment; what was said meanwhile."""
    said = []
    for _ in range(round(seconds / piece)):
        assert torch.get_num_threads() == pace.number
        said.append(pace.worked(speeds[pace.number] * piece, piece))
    return [message for message in said if message]


def test_the_choice_follows_the_neighbours_and_says_so():
    alone, beside = {1: 3700, 2: 6000}, {1: 3650, 2: 1200}
    pace = Threads(2)
    assert not pace.settled
    assert work(pace, alone, 5 * BLOCK) == []
    assert pace.settled
    assert str(pace) == "6,000 tokens/s with 2 threads (3,700 with 1)"
    assert work(pace, alone, 60) == []
    fell, changed = work(pace, beside, 3 * LOOK)
    assert fell.startswith("the speed fell from 6,000 to ")
    assert fell.endswith("tokens/s: other programs use these cores")
    assert (
        changed
        == "going on with 1 thread instead of 2: 3,650 tokens/s with 1 thread (1,200 with 2)"
    )
    assert work(pace, beside, 2 * AGAIN) == []  # doubted, tried again, and right
    assert pace.number == 1
    (back,) = work(pace, alone, AGAIN + LOOK)
    assert back.startswith("going on with 2 threads instead of 1: 6,000 tokens/s with 2 threads (")


def test_a_number_that_is_set_stays_and_only_the_speed_is_watched():
    pace = Threads(2, 2, 6000.0, fixed=True)
    assert pace.settled
    assert work(pace, {2: 5500}, 60) == []
    (fell,) = work(pace, {2: 1200}, 60)
    assert fell.endswith("other programs use these cores; it stays at 2 threads")
    assert pace.number == 2


def test_where_there_is_one_core_there_is_no_trial():
    pace = Threads(1)
    assert pace.settled
    assert work(pace, {1: 100}, 2 * LOOK) == []


def test_threads_are_put_back():
    before = torch.get_num_threads()
    with threads.use(before + 2):
        assert torch.get_num_threads() == before + 2
        torch.set_num_threads(before + 1)
    assert torch.get_num_threads() == before
