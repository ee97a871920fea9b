"""Schedules against loops and torch's own; resumed, made longer, and told where they do not fit."""

import math
from itertools import pairwise

import pytest
import torch
from fitted import Fitted, Place, assert_same
from hypothesis import example, given
from hypothesis import strategies as st
from torch.optim.lr_scheduler import OneCycleLR

from lmkit.assembly import make_data
from lmkit.config.check import check
from lmkit.config.compose import compose
from lmkit.errors import UserError
from lmkit.optim import (
    InverseSquareRoot,
    OneCycle,
    WarmupStableDecay,
)
from lmkit.run import Run
from lmkit.training.limits import check_limits

OFTEN = "callbacks.checkpoint.every_n_train_steps=4"


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Place:
    return Place(tmp_path_factory.mktemp("place"))


def optimizer(kind=torch.optim.Adam, **settings):
    groups = [
        {"params": [torch.nn.Parameter(torch.zeros(1))], "lr": 1.0},
        {"params": [torch.nn.Parameter(torch.zeros(1))], "lr": 0.1},
    ]
    return kind(groups, lr=1.0, **settings)


def rates(made, schedule, steps: int, *keys: str) -> list[list]:
    """What each group has before every update, and after the last."""
    found = []
    for _ in range(steps + 1):
        found.append([[group[key] for key in ("lr", *keys)] for group in made.param_groups])
        made.step()
        schedule.step()
    return found


# ---- one cycle


@pytest.mark.parametrize("anneal", ["cos", "linear"])
@pytest.mark.parametrize("pct_start", [0.0, 0.25, 0.3, 0.99])
@pytest.mark.parametrize("steps", [7, 40])
@pytest.mark.parametrize(
    ("kind", "settings", "key"),
    [
        (torch.optim.Adam, {"betas": (0.9, 0.99)}, "betas"),
        (torch.optim.SGD, {"momentum": 0.9}, "momentum"),
    ],
    ids=["Adam", "SGD"],
)
def test_a_cycle_is_torchs_with_the_rate_of_each_group(
    kind, settings, key, steps, pct_start, anneal
):
    ours, theirs = optimizer(kind, **settings), optimizer(kind, **settings)
    given = {"pct_start": pct_start, "anneal_strategy": anneal}
    mine = rates(ours, OneCycle(ours, steps, **given), steps - 1, key)
    torchs = OneCycleLR(theirs, max_lr=[1.0, 0.1], total_steps=steps, **given)
    for here, there in zip(mine, rates(theirs, torchs, steps - 1, key), strict=True):
        for own, expected in zip(here, there, strict=True):
            assert own[0] == pytest.approx(expected[0], rel=1e-9)
            assert own[1] == pytest.approx(expected[1], rel=1e-9)


@given(st.integers(1, 30), st.floats(0, 0.99), st.sampled_from(["cos", "linear"]))
def test_a_cycle_of_any_length_stays_within_its_rates(steps, pct_start, anneal):
    """torch divides by zero where the rate rises in one update, and goes on after its end."""
    made = optimizer()
    schedule = OneCycle(made, steps, pct_start=pct_start, anneal_strategy=anneal)
    lowest = 1 / 25 / 1e4
    found = [schedule.ratio(step) for step in range(steps + 3)]
    assert all(lowest * (1 - 1e-9) <= ratio <= 1.0 for ratio in found)
    assert found[steps - 1 :] == [pytest.approx(lowest)] * 4
    rises = [later > earlier for earlier, later in pairwise(found)]
    assert rises == sorted(rises, reverse=True)


def test_a_momentum_that_there_is_not_is_not_made():
    made = optimizer(torch.optim.SGD)
    rates(made, OneCycle(made, 9), 8)
    assert {group["momentum"] for group in made.param_groups} == {0}
    made = optimizer(betas=(0.0, 0.99))
    rates(made, OneCycle(made, 9), 8)
    assert {group["betas"] for group in made.param_groups} == {(0.0, 0.99)}
    made = optimizer(betas=(0.9, 0.99))
    rates(made, OneCycle(made, 9, cycle_momentum=False), 8)
    assert {group["betas"] for group in made.param_groups} == {(0.9, 0.99)}


def test_a_momentum_with_its_ends_exchanged():
    with pytest.raises(UserError) as error:
        check(compose(["scheduler=one_cycle", "scheduler.base_momentum=0.97"]))
    assert str(error.value) == (
        "1 mistake:\n  scheduler.base_momentum=0.97 but scheduler.max_momentum=0.95: the first is "
        "the lowest; exchange them"
    )


# ---- warm-up, stable, decay


def by_loop(steps: int, warmup: int, share: float, shape: str, least: float) -> list[float]:
    """The rate after each number of updates."""
    found, begin = [], steps - share * steps
    for step in range(steps + 3):
        if step < warmup:
            found.append((step + 1) / (warmup + 1))
        elif step < begin:
            found.append(1.0)
        else:
            left = max(steps - step, 0) / (share * steps) if share else 1.0
            kept = left if shape == "linear" else 1 - math.sqrt(1 - left)
            found.append(least + (1 - least) * kept)
    return found


@pytest.mark.parametrize("shape", ["linear", "sqrt"])
@pytest.mark.parametrize(
    ("steps", "warmup", "share", "least"),
    [(40, 0, 0.1, 0.0), (40, 5, 0.25, 0.1), (7, 2, 0.6, 0.0), (10, 0, 1.0, 0.0), (9, 3, 0.0, 0.0)],
)
def test_stable_and_decay_are_those_of_a_loop(shape, steps, warmup, share, least):
    made = optimizer(torch.optim.SGD)
    given = {"warmup_steps": warmup, "decay_share": share, "shape": shape, "min_ratio": least}
    found = rates(made, WarmupStableDecay(made, steps, **given), steps + 2)
    expected = by_loop(steps, warmup, share, shape, least)
    assert [first[0] for first, _ in found] == pytest.approx(expected)
    assert [second[0] for _, second in found] == pytest.approx([0.1 * ratio for ratio in expected])


@given(st.integers(1, 50), st.integers(51, 200), st.floats(0, 1), st.integers(0, 20))
def test_until_the_decay_the_rate_is_the_same_bit_for_bit_whatever_the_length(
    short, long, share, warmup
):
    made = optimizer()
    one, other = (
        WarmupStableDecay(made, steps, decay_share=share, warmup_steps=warmup)
        for steps in (short, long)
    )
    for step in range(math.floor((1 - share) * short)):
        assert one.ratio(step) == other.ratio(step)


def goes_on(place: Place, name: str, *argv: tuple[str, ...]) -> Fitted:
    """A run by the first keys, gone on with by each of the others in turn."""
    run = Run.named(str(place.outputs), "tiny", name)
    for keys in argv:
        config = place.config(*keys)
        run.check(config)
        run.start(config)
        place._work(run, config, None)
        run.release()
    return Fitted(run.path)


ADAM = ("optimizer=adam", "optimizer.lr=0.01", OFTEN)
WSD = ("scheduler=wsd", *ADAM, "scheduler.decay_share=0.25")


def test_made_longer_before_the_decay_it_is_the_longer_run_bit_for_bit(place):
    """Of 36 updates the last 9 have a falling rate; the shorter training ends before."""
    stable = ("scheduler.decay_share=0", "trainer.max_steps=20")
    fitted = goes_on(place, "stable", (*WSD, *stable), WSD)
    whole = place.fit(*WSD)
    for name, tensor in whole.weights.items():
        assert torch.equal(fitted.weights[name], tensor), name
    assert fitted.of("lr") == whole.of("lr")
    assert fitted.of("train/nll") == whole.of("train/nll")


def test_made_longer_after_the_decay_the_rate_goes_back_up_with_a_warning(place, caplog):
    fitted = goes_on(place, "decayed", (*WSD, "trainer.max_steps=12"), WSD)
    assert fitted.of("lr")[9:12] == pytest.approx(
        [0.01 * (1 - math.sqrt(n / 3)) for n in (1, 2, 3)]
    )
    assert fitted.of("lr")[12:27] == [0.01] * 15
    # Where no test before it has prepared the text, that is remarked on too.
    said = [each for each in caplog.records if each.name != "lmkit.store.preparation"]
    assert [record.getMessage() for record in said] == [
        "the learning rate goes back up, from 0 to 0.01: it had gone down for the end of a "
        "shorter training"
    ]


# ---- the others


def test_the_inverse_root_peaks_after_the_warm_up():
    made = optimizer(torch.optim.SGD)
    found = [first[0] for first, _ in rates(made, InverseSquareRoot(made, warmup_steps=3), 20)]
    scale = 4**0.5
    expected = [scale * min(n**-0.5, n * 4**-1.5) for n in range(1, 22)]
    assert found == pytest.approx(expected)
    assert max(found) == found[3] == 1.0


@pytest.mark.parametrize(
    "keys",
    [
        (*WSD, "scheduler.warmup_steps=3"),
        ("scheduler=one_cycle", *ADAM),
        ("scheduler=one_cycle", "optimizer.momentum=0.9", "optimizer.lr=0.1", OFTEN),
        ("scheduler=inverse_sqrt", "scheduler.warmup_steps=5", *ADAM),
        ("scheduler=hold_then_decay", "scheduler.hold=1", "optimizer.lr=0.5", OFTEN),
    ],
    ids=["wsd", "one cycle of Adam", "one cycle of SGD", "inverse_sqrt", "hold_then_decay"],
)
def test_killed_and_gone_on_with_is_the_same_run(place, keys):
    assert_same(place.fit(*keys), place.train(*keys, kill_at=(7, 21)))


def test_the_cycle_of_a_run_made_longer_is_that_of_the_new_length(place):
    keys = ("scheduler=one_cycle", *ADAM)
    fitted = goes_on(place, "cycle", (*keys, "trainer.max_steps=20"), keys)
    assert fitted.of("lr")[20:] == place.fit(*keys).of("lr")[20:]
    (state,) = fitted.checkpoint["optimizer_states"]
    assert state["param_groups"][0]["betas"] == pytest.approx((0.95, 0.999))


# ---- told before training


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (
            ("scheduler.warmup_steps=30", "scheduler.decay_share=0.25"),
            "scheduler.warmup_steps=30 but scheduler.decay_share=0.25 of 36 updates leaves 27 "
            "before the rate goes down; lower one of them, or train longer",
        ),
        (
            ("scheduler.warmup_steps=5", "trainer.max_steps=9", "scheduler.decay_share=0.5"),
            "scheduler.warmup_steps=5 but scheduler.decay_share=0.5 of 9 updates leaves 4 before "
            "the rate goes down; lower one of them, or train longer",
        ),
    ],
)
def test_a_warm_up_that_the_decay_would_cut_short(place, keys, expected):
    config = place.config("scheduler=wsd", *keys)
    data = make_data(config)
    data.prepare()
    with pytest.raises(UserError) as error:
        check_limits(config, data)
    assert str(error.value) == expected
    check_limits(place.config("scheduler=wsd", *keys, "scheduler.warmup_steps=4"), data)


@given(st.integers(1, 100_000), st.integers(0, 1000))
@example(1000, 900)  # (1 - 0.9) * 1000 is below 100
@example(100, 550)  # 100 - 0.55 * 100 is below 45
def test_a_warm_up_may_end_where_the_decay_begins(steps, thousandths):
    """Rounding makes no mistake of it, and misses none that is an update too long."""
    most = steps * (1000 - thousandths) // 1000
    for warmup in (most, most + 1):
        schedule = WarmupStableDecay(
            optimizer(), steps, decay_share=thousandths / 1000, warmup_steps=warmup
        )
        assert (schedule.misfit() is None) == (warmup == most)
        assert warmup > most or schedule.ratio(most) == pytest.approx(1.0, abs=1e-6)
    assert f" leaves {most} before the rate goes down" in schedule.misfit()


@pytest.mark.parametrize("schedule", ["wsd", "one_cycle"])
def test_without_a_length_there_is_no_end(schedule):
    keys = [f"scheduler={schedule}", "trainer.max_epochs=-1", "trainer.max_time=00:01:00:00"]
    with pytest.raises(UserError) as error:
        check(compose(keys))
    assert str(error.value) == (
        "1 mistake:\n  scheduler decays over the whole run but only trainer.max_time ends it: set "
        "trainer.max_steps or trainer.max_epochs too, or scheduler=constant"
    )
