"""Terms of the loss: against loops over documents, however the windows are cut and shared out."""

import re

import pytest
import torch
from fitted import Place, assert_same
from in_memory import EOS, VOCABULARY, Text, loader
from own_regularizers import Constant

from lmkit.config.check import check
from lmkit.config.compose import compose
from lmkit.errors import UserError
from lmkit.head import FullSoftmax, Loss
from lmkit.model import LSTM, Output
from lmkit.regularizers import (
    ActivationRegularization,
    Regularizer,
    TemporalActivationRegularization,
)
from lmkit.run import Run
from lmkit.training.task import Task

LENGTHS = [9, 1, 4, 13, 2, 6, 8]
ALPHA, BETA = 2.0, 3.0


def make_task(**model):
    torch.manual_seed(1)
    lstm = LSTM(VOCABULARY, embedding_size=8, hidden_size=8, init_range=1.0, **model)
    terms = {
        "ar": ActivationRegularization(ALPHA),
        "tar": TemporalActivationRegularization(BETA),
    }
    sgd = torch.optim.SGD
    head = FullSoftmax(8, VOCABULARY)
    return Task(lstm, head, lambda parameters: sgd(parameters, lr=0.5), regularizers=terms)


def test_without_a_weight_terms_have_those_of_the_paper():
    assert ActivationRegularization().weight == 2.0
    assert TemporalActivationRegularization().weight == 1.0


def slow_sums(task, documents):
    """Of the nll and of both terms, by a loop over the tokens of one document after another."""
    nll, ar, tar, count = 0.0, 0.0, 0.0, 0
    for document in documents:
        inputs = torch.tensor([[EOS, *document[:-1].tolist()]])
        state = task.model.initial_state(1)
        hidden = task.model(inputs, torch.zeros_like(inputs, dtype=torch.bool), state).hidden[0]
        logits = hidden @ task.head.weight.T + task.head.bias
        for t, token in enumerate(document.tolist()):
            nll = nll - logits[t].log_softmax(0)[token]
            ar = ar + ALPHA * sum(unit**2 for unit in hidden[t]) / 8
            if t:
                tar = tar + BETA * sum(change**2 for change in hidden[t] - hidden[t - 1]) / 8
            count += 1
    return nll / count, ar / count, tar / count


def gradients(task, windows, divide=1):
    """Summed gradients over windows, each loss divided as Lightning or DDP would."""
    task.zero_grad()
    for window in windows:
        (task.training_step(window, window.index) / divide).backward()
    return [parameter.grad.clone() for parameter in task.parameters()]


def assert_close(found, expected):
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("num_lanes", [1, 3, 8])
def test_loss_and_gradients_are_those_of_the_loop(num_lanes):
    text, task = Text(LENGTHS), make_task()
    nll, ar, tar = slow_sums(task, text.documents())
    expected = torch.autograd.grad(nll + ar + tar, list(task.parameters()))
    assert_close(gradients(task, loader(text, num_lanes=num_lanes, bptt=100)), expected)
    means = dict(zip(task.values.names, (task.values.sums / text.num_tokens).tolist(), strict=True))
    slow = {"nll": nll, "loss": nll + ar + tar, "ar": ar, "tar": tar}
    assert means == {name: pytest.approx(value.item(), rel=1e-5) for name, value in slow.items()}


@pytest.mark.parametrize("locked", [False, True])
@pytest.mark.parametrize("protocol", ["document", "stream"])
def test_nothing_depends_on_the_number_of_processes(protocol, locked):
    text, task = Text(LENGTHS), make_task(dropout=0.4, locked_dropout=locked)
    whole, sums = gradients(task, loader(text, protocol=protocol)), task.values.sums
    shares, share_sums = [], torch.zeros_like(sums)
    for rank in range(2):
        task.values.sums = torch.zeros_like(sums)
        share = loader(text, protocol=protocol, rank=rank, world_size=2)
        shares.append(gradients(task, share, divide=2))
        share_sums += task.values.sums
    assert_close(map(sum, zip(*shares, strict=True)), whole)
    torch.testing.assert_close(share_sums, sums, rtol=1e-6, atol=0)


def test_accumulated_terms_are_the_means_over_all_tokens_of_an_update():
    text, task = Text(LENGTHS), make_task()
    windows = list(loader(text, accumulate=3))[:3]
    accumulated, sums = gradients(task, windows, divide=3), task.values.sums
    counts = [window.num_targets for window in windows]
    assert len(set(counts)) > 1, "else a mean of means would pass"
    plain = [window._replace(weight=window.mask.float() / sum(counts)) for window in windows]
    task.values.sums = torch.zeros_like(sums)
    assert_close(gradients(task, plain), accumulated)
    torch.testing.assert_close(task.values.sums, sums, rtol=1e-6, atol=0)


def test_the_terms_of_their_paper():
    """Of the hidden vector as dropped out, and of the differences as they were without."""
    hidden, raw = torch.randn(2, 3, 4, 5).unbind(0)
    output, mask = Output(hidden, raw, ()), torch.ones(3, 4, dtype=torch.bool)
    mask[1, 2] = mask[2, 0] = False
    ar = ActivationRegularization(2.0).term(output, mask)
    torch.testing.assert_close(ar, 2 * hidden.pow(2).mean(-1))
    tar = TemporalActivationRegularization(3.0).term(output, mask)
    for lane in range(3):
        for t in range(4):
            told = t and mask[lane, t] and mask[lane, t - 1]
            change = raw[lane, t] - raw[lane, t - 1] if told else torch.zeros(5)
            if mask[lane, t]:
                torch.testing.assert_close(tar[lane, t], 3 * change.pow(2).mean())
    assert tar.shape == ar.shape == (3, 4)
    low = Output(hidden.bfloat16(), raw.bfloat16(), ())
    for each in (ActivationRegularization(), TemporalActivationRegularization()):
        assert each.term(low, mask).dtype == torch.float32


def test_no_term_goes_across_the_beginning_of_a_document():
    """Not a bit of the gradient at a document's tokens, of what is another in the one before."""
    terms, found = TemporalActivationRegularization(), []
    (window,) = loader(Text([5, 4, 6]), num_lanes=1, bptt=100)
    (at,) = window.resets[0].nonzero()[1]  # of the second document
    assert not window.mask[0, at]
    for scale in (1, 100):
        raw = torch.randn(1, window.tokens.shape[1], 7, generator=torch.Generator().manual_seed(1))
        raw[:, : at + 1] *= scale
        raw.requires_grad_()
        term = terms.term(Output(raw, raw, ()), window.mask) * window.weight
        (gradient,) = torch.autograd.grad(term.sum(), raw)
        found.append(gradient[:, at + 1 :])
        assert not gradient[:, at].any()
    assert torch.equal(*found)


class Smoothed(FullSoftmax):
    """Whose loss is not the nll."""

    def loss(self, hidden, targets, weight):
        loss, nll = super().loss(hidden, targets, weight)
        return Loss(loss + 0.25 * weight.sum(), nll)


def test_the_whole_loss_is_that_of_the_head_and_the_nll_stays_the_nll():
    text, task, twin = Text(LENGTHS), make_task(), make_task()
    torch.manual_seed(1)
    task.head = Smoothed(8, VOCABULARY)
    twin.head.load_state_dict(task.head.state_dict())
    for each in (task, twin):
        gradients(each, loader(text, num_lanes=1, bptt=1))  # some windows have no target
    found, plain = task.values.sums / text.num_tokens, twin.values.sums / text.num_tokens
    expected = plain + torch.tensor([0, 0.25, 0, 0])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Place:
    return Place(tmp_path_factory.mktemp("place"))


AR = "_target_=lmkit.regularizers.ActivationRegularization"
TERMS = ("regularizers=[ar,tar]", "regularizers.tar.weight=0.5", "model.dropout=0.2")


def test_terms_are_logged_by_name_and_in_the_loss_and_the_nll_is_the_nll(place):
    plain, fitted = place.fit("model.dropout=0.2"), place.fit(*TERMS)
    names = {f"train/{name}" for name in ("ar", "tar", "loss")}
    assert not any(names & row.keys() for row in plain.rows)
    rows = [row for row in fitted.rows if "train/nll" in row]
    assert len(rows) == 36
    for row in rows:
        assert row["train/ar"] > 0 < row["train/tar"]
        total = row["train/nll"] + row["train/ar"] + row["train/tar"]
        assert row["train/loss"] == pytest.approx(total, rel=1e-6)
    first = [each.of("train/nll")[0] for each in (plain, fitted)]
    assert first[0] == first[1]  # of the same weights and masks
    free = place.fit(*TERMS, "regularizers.ar.weight=2e-9", "regularizers.tar.weight=5e-10")
    for name in ("train/ar", "train/tar"):
        assert fitted.of(name)[-1] < 0.5e9 * free.of(name)[-1]
    assert plain.weights.keys() == fitted.weights.keys()
    assert not any(torch.equal(plain.weights[name], fitted.weights[name]) for name in plain.weights)


def test_a_class_of_ones_own(place, monkeypatch):
    """A constant is in the loss, and changes nothing else bit for bit."""
    monkeypatch.setenv("LMKIT_ALLOW", "own_regularizers")
    node = "regularizers.mine={_target_: own_regularizers.Constant, shape: []}"
    plain, mine = place.fit(), place.fit(node)
    for one, other in zip(plain.rows, mine.rows, strict=True):
        if "train/nll" in one:
            one = one | {"train/mine": 0.25, "train/loss": pytest.approx(one["train/nll"] + 0.25)}
        assert other == one
    for name, tensor in plain.weights.items():
        assert torch.equal(mine.weights[name], tensor)


@pytest.mark.parametrize("shape", [[4, 5, 1], [1], [4, 1], [5]])
def test_a_term_of_another_shape_is_an_error(shape):
    """Also one that would stretch to the right shape: (lanes,) may be taken for (time,)."""
    task = make_task()
    task.regularizers = {"mine": Constant(shape)}
    expected = re.escape(f"regularizers.mine: its term is {tuple(shape)}, expected a tensor (lanes")
    with pytest.raises(UserError, match=expected):
        gradients(task, loader(Text(LENGTHS)))


def test_a_term_that_is_no_tensor_is_an_error():
    class Float(Regularizer):
        def term(self, output, mask):
            return 0.5

    task = make_task()
    task.regularizers = {"mine": Float()}
    with pytest.raises(UserError, match=r"regularizers\.mine: its term is a float, expected"):
        gradients(task, loader(Text(LENGTHS)))


def test_a_run_with_terms_goes_on_to_the_bit(place):
    """Also where a row was half summed at the checkpoint."""
    often = ("callbacks.checkpoint.every_n_train_steps=4", "trainer.log_every_n_steps=3")
    more = ("model.locked_dropout=true", "trainer.accumulate_grad_batches=2")
    whole = place.fit(*often, *TERMS, *more)
    assert_same(whole, place.train(*often, *TERMS, *more, kill_at=(11, 21)))
    assert len(whole.of("train/tar")) == 6


@pytest.mark.parametrize(
    ("now", "told"),
    [
        (
            ["regularizers.ar2.weight=3", f"regularizers.ar2.{AR}"],
            "regularizers.ar2.weight: absent",
        ),
        (["regularizers.ar.weight=3"], "regularizers.ar.weight: 2.0 there, 3.0 now"),
        (["~regularizers.tar"], "regularizers.tar.weight: 0.5 there, absent now"),
        (["regularizers=none"], "regularizers.ar.weight: 2.0 there, absent now"),
    ],
)
def test_nothing_of_them_changes_in_a_run_that_goes_on(place, now, told):
    config, run = place.config(*TERMS), Run(place.fit(*TERMS).path)
    other = check(compose([*now, f"outputs={place.outputs}"], base=run.path / "config.yaml"))[0]
    with pytest.raises(UserError, match=rf"(?s)another config.*\n  {told}"):
        run.start(other)
    assert run.config()["regularizers"] == config["regularizers"]


@pytest.mark.parametrize(
    ("argv", "mistakes"),
    [
        (["regularizers=ar", "regularizers.ar.weight=-1"], ["ar.weight=-1: must be at least 0"]),
        (
            ["regularizers=ar", "regularizers.ar.weight=nan"],
            ["ar.weight=nan: must be a finite number"],
        ),
        (
            ["regularizers=[ar,tar]", "regularizers.tar.wait=1", "regularizers.ar.weight=x"],
            [
                "ar.weight=x: expected float, found text",
                "tar.wait is not a key of lmkit.regularizers.TemporalActivationRegularization; did "
                "you mean regularizers.tar.weight?",
            ],
        ),
        (
            ["regularizers.ar.weight=2"],
            ["ar: expected an object with a _target_, found a mapping; choose regularizers=ar"],
        ),
        (
            ["regularizers.mine._target_=torch.optim.SGD"],
            ["mine._target_: torch.optim.SGD is not a lmkit.regularizers.Regularizer"],
        ),
        (
            ["regularizers.nll._target_=lmkit.regularizers.ActivationRegularization"],
            ["nll: train/nll is another value; choose another name"],
        ),
        (
            ["regularizers.mine={_target_: own_regularizers.Mine, depth: 4}"],
            ["mine.depth=4: depth=4 is more than 3"],
        ),
    ],
)
def test_mistakes_are_told(place, monkeypatch, argv, mistakes):
    monkeypatch.setenv("LMKIT_ALLOW", "own_regularizers")
    lines = "".join(f"\n  regularizers.{mistake}" for mistake in mistakes)
    number = f"{len(mistakes)} mistake{'s' * (len(mistakes) > 1)}:"
    with pytest.raises(UserError) as raised:
        place.config(*argv)
    assert str(raised.value) == f"{number}{lines}"


def test_a_class_without_a_term_is_a_mistake(place):
    told = "\n  regularizers.mine: Can't instantiate abstract class Regularizer "
    with pytest.raises(UserError, match=told):
        place.config("regularizers.mine._target_=lmkit.regularizers.Regularizer")
