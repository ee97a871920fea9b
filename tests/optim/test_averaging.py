"""Averages of weights against sums over all weights that there were."""

import pytest
import torch

from lmkit.optim import EMA, NTASGD, SWA, TwoTailed


def steps(number):
    """Weights after each of so many updates: two parameters."""
    torch.manual_seed(0)
    return [[torch.randn(3, 4), torch.randn(5)] for _ in range(number)]


def mean(weights):
    return [torch.stack(parts).double().mean(0).float() for parts in zip(*weights, strict=True)]


def assert_near(found, expected):
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


def reloaded(averaging, fresh):
    """What goes on from the state of an averaging, and shares no memory with it."""
    state = averaging.state_dict()

    def copied(value):
        if isinstance(value, torch.Tensor):
            return value.clone()
        if isinstance(value, dict):
            return {key: copied(each) for key, each in value.items()}
        return [copied(each) for each in value] if isinstance(value, list) else value

    fresh.load_state_dict(copied(state))
    return fresh


@pytest.mark.parametrize("interval", [1, 3])
def test_nt_asgd_averages_from_the_first_validation_that_is_no_better_on(interval):
    """Than the best of all but the last `interval` before it, as algorithm 1 has it."""
    nlls = [5.0, 4.0, 4.5, 3.9, 4.1, 4.2, 4.05, 3.8, 4.3]
    triggers = [t for t, nll in enumerate(nlls) if t > interval and nll > min(nlls[: t - interval])]
    averaging, seen = NTASGD(interval), steps(5 * len(nlls))
    for t, nll in enumerate(nlls):
        for weights in seen[5 * t : 5 * t + 5]:
            averaging.update(weights, False)
        averaging = reloaded(averaging, NTASGD(interval))
        if t > triggers[0]:
            assert_near(averaging.weights, mean(seen[5 * (triggers[0] + 1) : 5 * t + 5]))
        else:
            assert averaging.weights is None
        assert not averaging.validated(nll, None)


@pytest.mark.parametrize(("latest", "begins"), [(3, 3), (1, 1), (9, 5)])
def test_nt_asgd_begins_after_a_validation_at_the_latest(latest, begins):
    """The fifth is worse than all but the last one before it."""
    nlls = [5.0, 4.0, 3.0, 2.0, 3.5, 1.0]
    averaging, seen = NTASGD(1, latest), steps(len(nlls))
    for number, (nll, weights) in enumerate(zip(nlls, seen, strict=True), start=1):
        averaging.update(weights, False)
        assert averaging.begun == (number > begins)
        averaging.validated(nll, None)
        averaging = reloaded(averaging, NTASGD(1, latest))
    assert_near(averaging.weights, mean(seen[begins:]))


def test_nt_asgd_does_not_begin_where_validations_are_alike():
    averaging = NTASGD(1)
    for nll in (5.0, 5.0, 5.0, 5.0, 5.1):
        assert not averaging.begun
        averaging.validated(nll, None)
    assert averaging.begun


def test_nt_asgd_forgets_the_validations_of_another_text():
    averaging = NTASGD(1)
    for nll in (1.0, 1.0):
        averaging.validated(nll, None)
    averaging.forget_validations()
    averaging.validated(9.0, None)
    assert not averaging.begun


@pytest.mark.parametrize("start", [0, 4])
def test_ema_is_the_sum_of_weights_by_powers_of_decay(start):
    averaging, seen = EMA(0.8, start), steps(11)
    for number, weights in enumerate(seen):
        averaging.update(weights, False)
        averaging = reloaded(averaging, EMA(0.8, start))
        counted = seen[start : number + 1]
        if not counted:
            assert averaging.weights is None
            continue
        shares = [0.8 ** (len(counted) - 1 - k) for k in range(len(counted))]
        expected = [
            sum(s * w for s, w in zip(shares, parts, strict=True)) / sum(shares)
            for parts in zip(*counted, strict=True)
        ]
        assert_near(averaging.weights, expected)


@pytest.mark.parametrize("every", [None, 2])
@pytest.mark.parametrize("start_epoch", [0, 2])
def test_swa_is_the_mean_of_the_weights_that_count(start_epoch, every):
    averaging, seen, counted = SWA(start_epoch, every), steps(20), []
    for number, weights in enumerate(seen):
        ends = number % 5 == 4
        averaging.update(weights, ends)
        since = number - 5 * start_epoch
        if since >= 0 and (ends if every is None else since % every == 1):
            counted.append(weights)
        averaging = reloaded(averaging, SWA(start_epoch, every))
        if counted:
            assert_near(averaging.weights, mean(counted))
        else:
            assert averaging.weights is None


def test_two_tailed_averaging_keeps_the_tail_that_is_better():
    """The tails by the numbers of their first weights; ties go to the shorter one."""
    averaging, seen = TwoTailed(), steps(60)
    long = short = 0
    wins = [True, False, True, True, False, False, True, False, True, False, True, False]
    for validation, rival_wins in enumerate(wins):
        now = 5 * (validation + 1)
        for weights in seen[now - 5 : now]:
            averaging.update(weights, False)
        averaging = reloaded(averaging, TwoTailed())
        assert_near(averaging.weights, mean(seen[long:now]))
        if long == short:
            assert averaging.rival is None
            assert not averaging.validated(3.0, None)
            short = now
            continue
        assert_near(averaging.rival, mean(seen[short:now]))
        assert averaging.validated(3.0, 3.0 if rival_wins else 3.1) == rival_wins
        if rival_wins:
            long, short = short, now
            assert_near(averaging.weights, mean(seen[long:now]))
    assert 0 < long < short


def test_what_the_user_should_know_of_an_average_is_said():
    averaging = EMA(0.9)
    assert "no average has begun" in averaging.remark()
    assert "no average has begun" in NTASGD().remark()
    for number in range(40):
        averaging.update([torch.ones(1)], False)
        long = averaging.remark()
        assert (long is not None) == (0.9 ** (number + 1) > 0.05)
        if number == 9:
            assert long == (
                "averaging.decay=0.9 is long for 10 updates: 35% of what it looks back on was "
                "before them, and early weights weigh much; lower it, or set averaging.start"
            )


def test_an_average_shares_no_memory_with_the_weights():
    weights = [torch.ones(2)]
    for averaging in (EMA(), SWA(0, 1), TwoTailed()):
        averaging.update(weights, True)
        weights[0].add_(1)
        assert averaging.weights[0].tolist() == [1, 1]
        weights[0].sub_(1)
