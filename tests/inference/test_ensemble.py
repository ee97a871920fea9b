"""Ensembles against plain loops over probabilities; models of any kind go together."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from trained_run import TEST, load, make_run

from lmkit.errors import UserError
from lmkit.head import Head
from lmkit.inference import Ensemble, Evaluation, Methods, Text, TrainedModel, ensemble, tuned
from lmkit.inference.cache import check_hidden
from lmkit.inference.dynamic import Adapted
from lmkit.inference.ensemble import best_weights, mixture
from lmkit.inference.mc_dropout import check_dropout
from lmkit.model import Output

probabilities = st.lists(st.floats(1e-6, 1), min_size=3, max_size=3)


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    return tmp_path_factory.mktemp("outputs")


@given(rows=st.lists(probabilities, min_size=1, max_size=6), cut=st.integers(0, 10))
def test_the_mixture_is_the_mean_of_the_probabilities(rows, cut):
    weights = [cut / 10, (10 - cut) / 20, (10 - cut) / 20]
    nlls = [-np.log(np.array(column)) for column in zip(*rows, strict=True)]
    expected = [-math.log(sum(w * p for w, p in zip(weights, row, strict=True))) for row in rows]
    assert mixture(nlls, weights) == pytest.approx(np.array(expected), abs=1e-9)


@given(
    rows=st.lists(st.tuples(st.floats(0.001, 1), st.floats(0.001, 1)), min_size=1, max_size=20),
    tokens=st.integers(1, 7),
)
def test_the_best_weights_are_those_of_a_search(rows, tokens):
    """However many tokens are looked at together."""
    nlls = [-np.log(np.array(column)) for column in zip(*rows, strict=True)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ensemble, "TOKENS", tokens)
        found = best_weights(nlls)
    assert sum(found) == pytest.approx(1)
    tried = [mixture(nlls, [w, 1 - w]).mean() for w in np.linspace(0, 1, 101)]
    assert mixture(nlls, found).mean() <= min(tried) + 1e-4


def test_the_best_mixture_is_no_worse_than_the_best_model():
    """Where plain expectation maximisation takes more rounds than a thousand."""
    nlls = [-np.log(np.array([p])) for p in (0.9765625, 0.978515625)]
    found = best_weights(nlls)
    assert found == pytest.approx([0.0, 1.0], abs=1e-5)
    assert mixture(nlls, found).mean() <= nlls[1].mean() + 1e-7


def test_a_step_that_is_too_long_is_taken_back():
    """One token that only the worse model knows keeps it in the mixture."""
    many = np.full(20_000, 5.0)
    nlls = [np.append(many, np.inf), np.append(many + 3, 1.0)]
    worse = 1 / 20_001 * (1 / (1 - np.exp(-3)))  # where the derivative of the nll is 0
    assert best_weights(nlls)[1] == pytest.approx(worse, rel=1e-2)


def test_a_model_that_knows_nothing_has_no_weight():
    nlls = [np.array([1.0, 2.0, np.inf]), np.array([np.inf, np.inf, np.inf])]
    assert best_weights(nlls) == pytest.approx([1, 0], abs=1e-3)
    nlls = [np.array([1.0, np.inf]), np.array([np.inf, 1.0])]
    assert best_weights(nlls) == pytest.approx([0.5, 0.5])


def test_weights_are_those_of_the_runs():
    Ensemble(["a"], [0.25, 0.75]).check()
    for settings, message in (
        (Ensemble([]), "ensemble=[]: name at least one other run"),
        (Ensemble(["a"], [1.0]), "ensemble_weights=[1.0]: has 1 for 2 runs, RUN's first"),
        (
            Ensemble(["a"], [0.5, 0.6]),
            "ensemble_weights=[0.5,0.6]: add up to 1.1, must add up to 1",
        ),
    ):
        with pytest.raises(UserError) as error:
            settings.check()
        assert str(error.value) == message


class Unigram(nn.Module):
    """A model without weights: of the interface no more than is promised."""

    any_threads = False
    hidden_size = 1

    def initial_state(self, num_lanes):
        return ((torch.zeros(num_lanes, 1),),)

    def forward(self, tokens, resets, state):
        hidden = tokens[..., None].float()
        return Output(hidden, hidden, state)


class Counts(Head):
    """A head that knows the word before and the counts of words."""

    def __init__(self, size):
        super().__init__()
        self.probabilities = torch.arange(1, size + 1) / (size * (size + 1) / 2)

    def nll(self, hidden, targets):
        return -self.probabilities[targets].log()


def unigram(trained):
    return TrainedModel(Unigram(), Counts(trained.tokenizer.vocabulary_size), trained.tokenizer)


@pytest.mark.parametrize("protocol", ["document", "sentence", "stream"])
def test_models_of_any_kind_go_together(outputs, protocol):
    trained = load(make_run(outputs))
    others = [load(make_run(outputs, "gru")), unigram(trained)]
    text = Text.of(TEST, trained.tokenizer, by_line=protocol == "sentence")
    evaluation = Evaluation(trained, protocol, others=others)
    (row,) = evaluation.measure(text, Methods(ensemble=Ensemble(["gru", "unigram"])))
    nlls = [
        [score.nll for score in each.score(TEST, protocol=protocol)]
        for each in (trained, others[0])
    ]
    probability = others[1].head.probabilities.tolist()
    nlls.append([-math.log(probability[token]) for token in text.tokens.tolist()])
    expected = [
        -math.log(sum(math.exp(-nll) for nll in token) / 3) for token in zip(*nlls, strict=True)
    ]
    assert row["nll"] == pytest.approx(np.mean(expected), abs=1e-5)
    assert row["settings"]["weights"] == [1 / 3] * 3


def test_what_such_a_model_lacks_is_told(outputs):
    model = unigram(load(make_run(outputs)))
    model.model.forward = lambda tokens, resets, state: Output(tokens[..., None], tokens, state)
    for check, message in (
        (check_hidden, "cache: the model has no hidden vectors to compare; leave it out"),
        (Adapted, "dynamic: the model has no weights that could learn; leave it out"),
        (check_dropout, "mc_dropout: the model was trained without dropout; leave it out"),
    ):
        with pytest.raises(UserError) as error:
            check(model)
        assert str(error.value) == message


def test_it_is_tuned_to_the_best_weights(outputs):
    trained = load(make_run(outputs))
    text = Text.of(TEST, trained.tokenizer)
    evaluation = Evaluation(trained, "document", others=[load(make_run(outputs, "gru"))])
    methods, (row,) = tuned(evaluation, text, Methods(ensemble=Ensemble(["gru"])))
    assert methods.ensemble.weights == row["settings"]["weights"]
    for share in np.linspace(0, 1, 21):
        fixed = Methods(ensemble=Ensemble(["gru"], [float(share), float(1 - share)]))
        assert row["nll"] <= evaluation.measure(text, fixed)[0]["nll"] + 1e-5
