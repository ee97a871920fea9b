"""Monte Carlo dropout against plain loops over samples and windows."""

import math

import numpy as np
import pytest
import torch
from in_memory import Text as Tokens
from slow_mixture import slow_prob
from trained_run import TEST, make_run

from lmkit.errors import UserError
from lmkit.head import MixtureOfSoftmaxes, ProjectedSoftmax, SampledSoftmax
from lmkit.inference import Evaluation, MCDropout, Methods, Text, TrainedModel, mc_dropout
from lmkit.inference.mc_dropout import mean_nll
from lmkit.model import Masks
from lmkit.model.dropout import dropout


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    return tmp_path_factory.mktemp("outputs")


@pytest.fixture
def trained(outputs):
    return with_dropout(make_run(outputs), dropout=0.4)


def with_dropout(run, **settings):
    trained = TrainedModel.load(run, run.config())
    for name in ("embedding_dropout", "output_dropout"):
        settings.setdefault(name, settings["dropout"])
    for name, value in settings.items():
        setattr(trained.model, name, value)
    return trained


def with_head(run, head):
    """The trained model with a head of another kind, which has dropout of its own where it can."""
    torch.manual_seed(3)
    trained = TrainedModel.load(run, run.config())
    sizes = (trained.model.hidden_size, trained.tokenizer.vocabulary_size)
    if head == "mixture":
        made = MixtureOfSoftmaxes(*sizes, init_range=1.0, num_experts=3, latent_dropout=0.4)
    elif head == "projected":
        embedding = trained.model.embedding
        made = ProjectedSoftmax(*sizes, embedding=embedding, projection_dropout=0.4)
    else:
        made = SampledSoftmax(*sizes, init_range=1.0, num_samples=3)
    trained.head = made.eval()
    return trained


def softmax(head, hidden):
    """The probabilities of all words, with the head's dropout, in float64."""
    if isinstance(head, MixtureOfSoftmaxes):
        ones = torch.ones(len(hidden), 1, head.num_experts * head.weight.shape[1])
        return slow_prob(head, hidden, dropout(ones, head.latent_dropout, True, "head.latent"))
    if isinstance(head, ProjectedSoftmax):
        hidden = hidden @ head.projection.T
        ones = torch.ones_like(hidden)
        hidden = hidden * dropout(ones, head.projection_dropout, True, "head.projection")
    return (hidden @ head.weight.T + head.bias).double().softmax(-1)


def slow_probabilities(trained, lanes, bptt, seed, sample):
    """The probability of each target, lane by lane; lanes: (inputs, targets) of one length."""
    inputs, targets = (torch.tensor(column) for column in zip(*lanes, strict=True))
    state = trained.model.initial_state(len(lanes))
    found = []
    trained.model.train()
    for number, begin in enumerate(range(0, inputs.shape[1], bptt)):
        now = inputs[:, begin : begin + bptt]
        with Masks(seed, sample, number).use(), torch.no_grad():
            output = trained.model(now, torch.zeros_like(now, dtype=torch.bool), state)
            probabilities = softmax(trained.head, output.hidden)
        state = output.state
        there = targets[:, begin : begin + bptt, None]
        found.append(probabilities.gather(2, there)[..., 0])
    trained.model.eval()
    return torch.cat(found, 1).flatten().tolist()


@pytest.mark.parametrize("settings", [{}, {"locked_dropout": True}, {"word_dropout": 0.3}])
@pytest.mark.parametrize("num_lanes", [1, 2])
def test_it_is_the_mean_of_the_probabilities(outputs, num_lanes, settings):
    trained = with_dropout(make_run(outputs), dropout=0.4, **settings)
    check_against_the_slow_one(trained, num_lanes)


@pytest.mark.parametrize("head", ["mixture", "projected"])
@pytest.mark.parametrize("num_lanes", [1, 2])
def test_the_dropout_of_the_head_is_sampled_too(outputs, num_lanes, head):
    trained = with_head(make_run(outputs), head)
    mc_dropout.check_dropout(trained)  # it has no other
    check_against_the_slow_one(trained, num_lanes)
    trained.model.output_dropout = 0.3
    check_against_the_slow_one(trained, num_lanes)


def test_the_state_goes_on_where_a_training_begins_anew(outputs):
    run = make_run(outputs)
    text, settings = Tokens([12, 8]), MCDropout(3, seed=5)
    expected, found = (
        mean_nll(with_dropout(run, dropout=0.4, fresh_state=share), text, "stream", 2, 3, settings)
        for share in (0.0, 0.7)
    )
    assert np.array_equal(found, expected)
    alone = with_dropout(run, dropout=0.0, fresh_state=0.5)
    with pytest.raises(UserError, match="was trained without dropout"):
        mc_dropout.check_dropout(alone)
    plain = mean_nll(alone, text, "stream", 2, 3, MCDropout(1))
    assert plain == pytest.approx(mean_nll(alone, text, "stream", 2, 10, MCDropout(1)), abs=1e-6)
    assert alone.model.fresh_state == 0.5


@pytest.mark.parametrize(
    "settings", [{"weight_dropout": 0.3}, {"zoneout": (0.3, 0.0)}, {"state_dropout": 0.3}]
)
def test_what_layers_leave_out_is_sampled(outputs, settings):
    trained = with_dropout(make_run(outputs), dropout=0.0)
    for layer in trained.model.layers:
        for name, value in settings.items():
            setattr(layer, name, value)
    mc_dropout.check_dropout(trained)
    check_against_the_slow_one(trained, 2)


def test_a_sampled_softmax_is_exact(outputs):
    trained = with_head(make_run(outputs), "sampled")
    with pytest.raises(UserError, match="was trained without dropout"):
        mc_dropout.check_dropout(trained)
    trained.model.output_dropout = 0.3
    check_against_the_slow_one(trained, 2)


def check_against_the_slow_one(trained, num_lanes):
    text = Tokens([12, 8])
    parts = np.split(text.tokens.astype(int), num_lanes)
    firsts = [trained.tokenizer.eos_id, *(int(part[-1]) for part in parts[:-1])]
    lanes = [
        ([first, *part[:-1].tolist()], part.tolist())
        for first, part in zip(firsts, parts, strict=True)
    ]
    samples = [slow_probabilities(trained, lanes, 7, 5, sample) for sample in range(3)]
    assert max(abs(a - b) for a, b in zip(*samples[:2], strict=True)) > 1e-3
    expected = [-math.log(sum(each) / 3) for each in zip(*samples, strict=True)]
    nll = mean_nll(trained, text, "stream", num_lanes, 7, MCDropout(3, seed=5))
    assert nll == pytest.approx(np.array(expected), abs=1e-5)


def test_a_document_knows_nothing_of_the_one_before(trained):
    """In lanes of their own: of one lane the masks would be others."""
    texts = [Tokens([7, 7]), Tokens([7, 7], seed=1)]
    texts[1].tokens[7:] = texts[0].tokens[7:]
    one, other = (mean_nll(trained, text, "document", 2, 5, MCDropout(2)) for text in texts)
    assert np.array_equal(one[7:], other[7:])
    assert not np.array_equal(one[:7], other[:7])


@pytest.mark.parametrize("bptt", [3, None])
def test_its_windows_are_those_of_the_training(outputs, bptt, monkeypatch):
    """Where these are not known, they are of a fixed length."""
    monkeypatch.setattr("lmkit.inference.methods.BPTT", 5)
    run, text = make_run(outputs), Tokens([12, 8])
    config = run.config()
    if bptt:
        config["data"]["bptt"] = bptt
    trained = TrainedModel.load(run, config)
    trained.model.output_dropout = 0.4
    if not bptt:
        trained.shape = None
    settings = MCDropout(2)
    (row,) = Evaluation(trained, "document").measure(text, Methods(mc_dropout=settings))
    expected = mean_nll(trained, text, "document", 2, bptt or 5, settings)
    assert row["nll"] == pytest.approx(expected.mean(), abs=1e-9)


def test_it_depends_on_the_seed_alone(trained):
    text = Text.of(TEST, trained.tokenizer)
    evaluation = Evaluation(trained, "document")

    def nll(seed):
        torch.rand(1)  # nor on the global generator
        (row,) = evaluation.measure(text, Methods(mc_dropout=MCDropout(2, seed)))
        return row["nll"]

    assert nll(1) == nll(1) != nll(2)


def test_the_model_is_unchanged_also_if_interrupted(trained, monkeypatch):
    before = {name: tensor.clone() for name, tensor in trained.model.state_dict().items()}
    text, plain = Text.of(TEST, trained.tokenizer), trained.nll(TEST)
    mean_nll(trained, text, "document", 1, 5, MCDropout(2))
    assert trained.nll(TEST) == plain

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(trained.head, "nll", interrupted)
    with pytest.raises(KeyboardInterrupt):
        mean_nll(trained, text, "document", 1, 5, MCDropout(2))
    monkeypatch.undo()
    assert not any(each.training for each in (*trained.model.modules(), *trained.head.modules()))
    assert trained.nll(TEST) == plain
    after = trained.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_model_without_dropout_is_refused(outputs):
    run = make_run(outputs)
    trained = TrainedModel.load(run, run.config())
    with pytest.raises(UserError) as error:
        mc_dropout.check_dropout(trained)
    assert str(error.value) == "mc_dropout: the model was trained without dropout; leave it out"
    mc_dropout.check_dropout(with_dropout(run, dropout=0.05))
