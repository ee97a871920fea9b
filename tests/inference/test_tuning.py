"""The settings that are chosen are the best of what is tried, each evaluated by itself."""

import numpy as np
import pytest
from in_memory import Text as Tokens
from trained_run import TEST, TRAIN, load, make_run

from lmkit.errors import UserError
from lmkit.inference import (
    Cache,
    Dynamic,
    Ensemble,
    Evaluation,
    MCDropout,
    Methods,
    Temperature,
    Text,
    tuned,
    tuning,
)
from lmkit.inference.dynamic import DivergedError
from lmkit.inference.tuning import best_cache

NAN, INF = np.nan, np.inf


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return load(make_run(tmp_path_factory.mktemp("outputs")))


@pytest.fixture
def evaluation(trained):
    return Evaluation(trained, "stream", train=lambda: Text.of(TRAIN, trained.tokenizer))


def test_a_cache_is_the_best_of_all(trained, evaluation):
    text = Text.of(TEST, trained.tokenizer)
    methods, (row,) = tuned(evaluation, text, Methods(cache=Cache(9)))
    assert methods.cache.size == 9
    assert row["settings"] == vars(methods.cache)
    (again,) = evaluation.measure(text, methods)
    assert again["nll"] == pytest.approx(row["nll"], abs=1e-6)
    for theta in tuning.THETAS:
        for weight in (0.0, 0.05, 0.1, 0.2, 0.4, 0.8):
            (other,) = evaluation.measure(text, Methods(cache=Cache(9, theta, weight)))
            assert row["nll"] <= other["nll"] + 1e-5


@pytest.mark.parametrize(
    ("methods", "num_lanes"),
    [
        (Methods(Cache(9)), [3]),
        (Methods(ensemble=Ensemble(["itself"])), [4]),
        (Methods(temperature=Temperature(1.0)), [4]),
        (Methods(Cache(9), Dynamic("sgd", lr=0.01)), [1, 1]),
    ],
    ids=lambda value: ", ".join(value.names) if isinstance(value, Methods) else None,
)
def test_the_rows_name_the_lanes_that_were_read(trained, methods, num_lanes, monkeypatch):
    monkeypatch.setattr("lmkit.inference.methods.REMEMBERED", 3 * 9 * trained.model.hidden_size)
    text = Tokens([9, 9, 9, 9])
    evaluation = Evaluation(trained, "document", others=[trained])
    chosen, rows = tuned(evaluation, text, methods)
    again = evaluation.measure(text, chosen)
    assert [row["num_lanes"] for row in rows] == [row["num_lanes"] for row in again] == num_lanes


def test_the_best_weight_of_a_cache():
    nll = np.log(np.array([4.0, 4.0, 4.0]))
    never = np.array([NAN, -INF, -INF])
    always = np.array([NAN, 0.0, 0.0])
    cache, best = best_cache(np.stack([nll, never, always]), 7, [0.1, 0.2])
    assert (cache.size, cache.theta, cache.weight) == (7, 0.2, tuning.LARGEST_SHARE)
    assert best[0] == nll[0] > best[1]
    cache, best = best_cache(np.stack([nll, never]), 7, [0.1])
    assert cache.weight == pytest.approx(0, abs=1e-3)
    cache, _ = best_cache(np.stack([nll[:1], never[:1]]), 7, [0.1])  # no token has a cache
    assert cache.weight == 0


def test_dynamic_evaluation_is_tried_on_the_first_tokens(trained, evaluation, monkeypatch):
    monkeypatch.setattr(tuning, "TRIED_TOKENS", 12)
    text = Text.of(TEST, trained.tokenizer)
    read, tried = evaluation.read_dynamically, []

    def noted(text, settings, *more, **named):
        nll = read(text, settings, *more, **named)
        tried.append((text.num_tokens, settings, float(nll[0].mean())))
        return nll

    monkeypatch.setattr(evaluation, "read_dynamically", noted)
    methods, rows = tuned(evaluation, text, Methods(Cache(5), Dynamic("rms", segment=3)))
    *trials, (whole, chosen, _) = tried
    rates, decays = trials[: len(tuning.LR_FACTORS)], trials[len(tuning.LR_FACTORS) :]
    assert [count for count, *_ in tried] == [12] * len(trials) + [whole := text.num_tokens]
    assert [each.lr for _, each, _ in rates] == pytest.approx(
        [3e-5 * factor for factor in tuning.LR_FACTORS]
    )
    lr = min(rates, key=lambda trial: trial[2])[1].lr
    assert [each.lr for _, each, _ in decays] == [lr] * len(tuning.DECAY_FACTORS)
    assert chosen == methods.dynamic == min(decays, key=lambda trial: trial[2])[1]
    assert [row["method"] for row in rows] == ["dynamic", "dynamic+cache"]
    assert whole == len(text.tokens)
    again = evaluation.measure(text, methods)
    for row, other in zip(rows, again, strict=True):
        assert row["settings"] == other["settings"]
        assert row["nll"] == pytest.approx(other["nll"], abs=1e-6)


def test_what_is_set_is_not_chosen(trained, evaluation):
    text = Text.of(TEST, trained.tokenizer)
    settings = Dynamic("sgd", lr=0.01, decay=0.5)
    assert tuning.best_dynamic(evaluation, text, settings) == settings
    settings = Dynamic("sgd", decay=0.5)
    assert tuning.best_dynamic(evaluation, text, settings).decay == 0.5


@pytest.mark.parametrize("dynamic", [None, Dynamic("sgd", lr=0.01, decay=0.5)])
def test_a_setting_of_a_cache_that_is_set_is_not_chosen(trained, evaluation, dynamic):
    text = Text.of(TEST, trained.tokenizer)
    shares = (0.0, 0.05, 0.1, 0.2, 0.4, 0.8)

    def nll(cache):
        return evaluation.measure(text, Methods(cache, dynamic))[-1]["nll"]

    methods, rows = tuned(evaluation, text, Methods(Cache(9, theta=0.15), dynamic))
    assert methods.cache.theta == rows[-1]["settings"]["theta"] == 0.15
    assert rows[-1]["nll"] <= min(nll(Cache(9, 0.15, share)) for share in shares) + 1e-5
    methods, rows = tuned(evaluation, text, Methods(Cache(9, weight=0.35), dynamic))
    assert methods.cache.weight == rows[-1]["settings"]["weight"] == 0.35
    expected = {theta: nll(Cache(9, theta, 0.35)) for theta in tuning.THETAS}
    assert rows[-1]["nll"] == pytest.approx(min(expected.values()), abs=1e-6)
    assert methods.cache.theta == min(expected, key=expected.get)


def test_a_cache_stays_as_it_is_set_where_dynamic_evaluation_is_chosen(trained, evaluation):
    text, cache = Text.of(TEST, trained.tokenizer), Cache(9, 0.15, 0.35)
    methods, rows = tuned(evaluation, text, Methods(cache, Dynamic("sgd", lr=0.01)))
    assert methods.cache == cache
    assert rows[-1]["settings"] == vars(cache)
    assert rows[-1]["nll"] == evaluation.measure(text, methods)[-1]["nll"]


@pytest.mark.parametrize(
    ("methods", "names"),
    [
        (Methods(Cache(9, 0.0, 0.0)), "cache.theta, cache.weight"),
        (Methods(dynamic=Dynamic("sgd", lr=0.01, decay=0.0)), "dynamic.lr, dynamic.decay"),
        (
            Methods(Cache(9, 0.1, 0.1), Dynamic("rms", lr=0.01, decay=0.5)),
            "cache.theta, cache.weight, dynamic.lr, dynamic.decay",
        ),
        (Methods(ensemble=Ensemble(["a"], [0.5, 0.5])), "ensemble_weights"),
    ],
    ids=str,
)
def test_where_all_is_set_there_is_nothing_to_tune(trained, evaluation, methods, names):
    with pytest.raises(UserError) as error:
        tuned(evaluation, Text.of(TEST, trained.tokenizer), methods)
    assert str(error.value) == f"tune: no effect with {names} set; leave it out"


def test_a_rate_that_makes_the_weights_diverge_is_not_chosen(trained, evaluation, monkeypatch):
    monkeypatch.setattr(tuning, "LR_FACTORS", [1e38, 1e-6])
    text = Text.of(TEST, trained.tokenizer)
    found = tuning.best_dynamic(evaluation, text, Dynamic("sgd", decay=0.0))
    assert found.lr == pytest.approx(0.25e-6)


def test_where_every_rate_makes_them_diverge_none_is_chosen(trained, evaluation, monkeypatch):
    monkeypatch.setattr(tuning, "LR_FACTORS", [1e38, 1e37])
    text = Text.of(TEST, trained.tokenizer)
    with pytest.raises(DivergedError) as error:
        tuned(evaluation, text, Methods(dynamic=Dynamic("sgd")))
    assert str(error.value) == (
        "dynamic: the weights diverged with all that was tried, lr=2.5e+37, lr=2.5e+36: set a "
        "lower lr"
    )
    with pytest.raises(DivergedError) as error:
        tuned(evaluation, text, Methods(dynamic=Dynamic("sgd", lr=1e38)))
    assert str(error.value) == (
        "dynamic: the weights diverged with all that was tried, decay=0, decay=0.001, decay=0.01: "
        "lr=1e+38 is too high: lower it"
    )


def test_what_has_nothing_to_choose_is_refused(trained, evaluation):
    text = Text.of(TEST, trained.tokenizer)
    for methods in (Methods(), Methods(mc_dropout=MCDropout(2))):
        with pytest.raises(UserError) as error:
            tuned(evaluation, text, methods)
        assert str(error.value) == tuning.NOTHING_TO_CHOOSE
