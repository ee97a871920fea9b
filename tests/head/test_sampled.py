"""The sampled softmax against its equation, and what it draws."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from head_window import head_window
from torch import nn

from lmkit import cli, kernels
from lmkit.errors import UserError
from lmkit.head import FullSoftmax, SampledSoftmax
from lmkit.head.sampler import Sampler, probabilities
from lmkit.model import Embedding, Masks

VOCABULARY, SIZE = 61, 12
COUNTS = torch.tensor(np.random.default_rng(0).integers(0, 50, VOCABULARY), dtype=torch.float64)


def make(tied=False, counted=True, **settings):
    torch.manual_seed(0)
    embedding = Embedding(VOCABULARY, SIZE, init_range=0.5, tied=tied)
    settings = {"num_samples": 30, **settings}
    head = SampledSoftmax(SIZE, VOCABULARY, embedding=embedding, init_range=0.5, **settings)
    if head.bias is not None:
        nn.init.normal_(head.bias)
    if counted:
        head.learn_counts(COUNTS)
    return head, embedding


def case():
    return head_window(VOCABULARY, SIZE, 17)


def drawn(head, *window):
    return head._sampler.draw(Masks(*window).key("head.samples")).tolist()


def slow_nll(head, hidden, targets, ids):
    """-log of the target's share among itself and the other ids drawn, each less log E."""
    if head.distribution == "unigram":
        q = (COUNTS + 1) / (COUNTS + 1).sum()
    else:
        by_count = sorted(range(VOCABULARY), key=lambda i: -COUNTS[i])
        q = torch.empty(VOCABULARY, dtype=torch.float64)
        for k, i in enumerate(by_count):
            q[i] = math.log((k + 2) / (k + 1)) / math.log(VOCABULARY + 1)
    assert float(q.sum()) == pytest.approx(1)
    logits = hidden.double() @ head.weight.double().T
    logits = logits if head.bias is None else logits + head.bias.double()
    logits = logits - (1 - (1 - q) ** head.num_samples).log()
    rows = []
    for row, target in zip(logits.flatten(0, 1), targets.flatten().tolist(), strict=True):
        compared = [target, *(i for i in ids if i != target)]
        rows.append(row[compared].logsumexp(0) - row[target])
    return torch.stack(rows).view(targets.shape)


KINDS = [
    {},
    {"sampler": "unigram"},
    {"bias": False},
    {"chunk_size": 7},
    {"num_samples": 1},
    {"num_samples": 1000},
    {"tied": True},
    {"tied": True, "bias": False, "chunk_size": 50},
]


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_it_is_the_slow_one(kind, sparse):
    head, _ = make(**kind)
    head.sparse_gradient = sparse
    hidden, targets, weight = case()
    ids = drawn(head, 1, 2, 3)
    nll = slow_nll(head, hidden, targets, ids)
    expected = (nll * weight).sum()
    assert sum(i in ids for i in targets.flatten().tolist()) > 3 or len(ids) == 1  # hits
    with Masks(1, 2, 3).use():
        loss = head.loss(hidden, targets, weight)
        with torch.no_grad():
            alone = head.loss(hidden, targets, weight)
    assert alone.loss == loss.loss
    torch.testing.assert_close(loss.loss, expected.float())
    torch.testing.assert_close(loss.nll, nll[weight != 0].sum(), rtol=1e-6, atol=1e-5)
    assert not loss.nll.requires_grad
    found = torch.autograd.grad(3 * loss.loss, [hidden, *head.parameters()])
    plain = torch.autograd.grad(3 * expected, [hidden, *head.parameters()])
    assert found[1].is_sparse == sparse
    for one, other in zip(found, plain, strict=True):
        torch.testing.assert_close(one.to_dense(), other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_bf16_stays_near_fp32(kind):
    head, _ = make(**kind)
    hidden, targets, weight = case()
    losses = []
    for mixed in (False, True):
        with Masks(1, 2, 3).use(), torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            losses.append(head.loss(hidden, targets, weight).loss)
    torch.testing.assert_close(*losses, rtol=1e-2, atol=1e-2)
    gradients = [torch.autograd.grad(loss, [hidden, *head.parameters()]) for loss in losses]
    for one, other in zip(*gradients, strict=True):
        assert one.dtype == other.dtype
        assert F.cosine_similarity(one.flatten(), other.flatten(), dim=0) > 0.999


@pytest.mark.parametrize("choice", ["compiled", "torch"])
def test_evaluation_is_that_of_the_full_softmax(choice):
    head, embedding = make(tied=True)
    full = FullSoftmax(SIZE, VOCABULARY, embedding)
    full.load_state_dict(head.state_dict())
    hidden, targets, _ = case()
    with kernels.use(choice), torch.no_grad():
        assert torch.equal(head.nll(hidden, targets), full.nll(hidden, targets))
        assert head.training
        assert torch.equal(head.nll_with_dropout(hidden, targets), full.nll(hidden, targets))
        log_probs = [torch.cat(list(each.log_prob(hidden))) for each in (head, full)]
    assert torch.equal(*log_probs)
    assert head.eval().any_threads
    assert not head.train().any_threads


@pytest.mark.parametrize("sampler", ["log_uniform", "unigram"])
def test_with_many_samples_it_is_the_full_softmax(sampler):
    """Every word is drawn then, and log E is 0."""
    head, embedding = make(sampler=sampler, num_samples=200_000)
    full = FullSoftmax(SIZE, VOCABULARY, embedding)
    full.load_state_dict(head.state_dict())
    hidden, targets, weight = case()
    losses = [each.loss(hidden, targets, weight) for each in (head, full)]
    torch.testing.assert_close(losses[0].loss, losses[1].loss)
    torch.testing.assert_close(losses[0].nll, losses[1].nll)
    for one, other in zip(
        torch.autograd.grad(losses[0].loss, [hidden, *head.parameters()]),
        torch.autograd.grad(losses[1].loss, [hidden, *full.parameters()]),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sampler", ["log_uniform", "unigram"])
def test_the_true_distribution_is_where_it_is_expected_to_stay(sampler):
    """At logits that are log p the mean gradient vanishes; without the correction it does not."""
    head, _ = make(sampler=sampler, num_samples=12)
    p = ((COUNTS + 5) / (COUNTS + 5).sum()).float()
    hidden, targets = torch.zeros(1, VOCABULARY, SIZE), torch.arange(VOCABULARY)[None]
    with torch.no_grad():
        head.bias.copy_(p.log())

    def mean_gradient():
        """Over draws, and exactly over targets."""
        total, number = torch.zeros(VOCABULARY), 1000
        for window in range(number):
            with Masks(1, 0, window).use():
                loss = head.loss(hidden, targets, p[None]).loss
            total += torch.autograd.grad(loss, head.bias)[0] / number
        return float(total.norm())

    corrected = mean_gradient()
    head._sampler._log_expected = {"cpu": torch.zeros(VOCABULARY)}
    assert corrected < 0.25 * mean_gradient(), corrected


@pytest.mark.parametrize("sampler", ["log_uniform", "unigram"])
def test_words_are_drawn_as_often_as_is_expected(sampler):
    q = probabilities(sampler, COUNTS.numpy())
    assert q.sum() == pytest.approx(1)
    assert q[COUNTS.argmax()] == q.max()
    sampler = Sampler(q, 20)
    times, number = np.zeros(VOCABULARY), 4000
    for window in range(number):
        ids = sampler.draw(Masks(0, 0, window).key("head.samples"))
        assert (ids[1:] > ids[:-1]).all()
        times[ids] += 1
    expected = sampler.log_expected(torch.device("cpu")).double().exp().numpy()
    deviation = np.abs(times / number - expected) / np.sqrt(expected * (1 - expected) / number)
    assert deviation.max() < 4.5


def test_expectations_that_inference_has_moved_serve_gradients_too():
    """The device `meta` stands for an accelerator."""
    head, _ = make()
    with torch.inference_mode():
        moved = head._sampler.log_expected(torch.device("meta"))
    assert moved.device == torch.device("meta")
    bias = torch.zeros(VOCABULARY, device="meta", requires_grad=True)
    (bias * head._sampler.log_expected(torch.device("meta"))).sum().backward()


def test_what_is_drawn_follows_from_seed_epoch_and_window():
    head, _ = make()
    windows = [(1, 2, 3), (2, 2, 3), (1, 3, 3), (1, 2, 4)]
    every = [drawn(head, *window) for window in windows]
    assert len({tuple(each) for each in every}) == len(every)
    assert every == [drawn(head, *window) for window in windows]
    assert drawn(head, 1, 2, 3, 8, 16) == every[0]  # in each process
    before = torch.get_rng_state()
    with Masks(1, 2, 3).use():
        head.loss(*case())
    torch.manual_seed(1)
    one = head.loss(*case()).loss
    assert one == head.loss(*case()).loss  # by the generator, which `case` seeds
    torch.set_rng_state(before)


def test_masks_leave_the_default_generator_alone():
    head, _ = make()
    arguments = case()
    before = torch.get_rng_state()
    with Masks(0, 0, 0).use():
        head.loss(*arguments)
    assert torch.equal(torch.get_rng_state(), before)


def test_drawing_needs_no_counts_or_says_so():
    hidden, targets, weight = case()
    assert make(counted=False)[0].loss(hidden, targets, weight).loss > 0
    expected = "head.sampler=unigram draws by the counts of the train split: call learn_counts"
    with pytest.raises(UserError, match=expected):
        make(counted=False, sampler="unigram")[0].loss(hidden, targets, weight)


def test_a_word_that_never_occurs_is_drawn_too():
    head, _ = make(sampler="unigram")
    head.learn_counts(torch.tensor([1000.0] + [0.0] * (VOCABULARY - 1)))
    found = {i for window in range(300) for i in drawn(head, 1, 2, window)}
    assert len(found) > 50
    assert torch.isfinite(head._sampler.log_expected(torch.device("cpu"))).all()


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("tied", [True, False])
def test_gradients_of_several_windows_and_updates_add_up(tied, sparse):
    head, embedding = make(tied=tied)
    head.sparse_gradient = sparse
    hidden, targets, weight = case()
    tokens = torch.randint(VOCABULARY, (3, 17))
    parameters = list(dict.fromkeys([*head.parameters(), embedding.weight]))

    def inputs(scale):
        return embedding(tokens).tanh() + scale * hidden.detach()

    ids = drawn(head, 1, 2, 3)
    expected = [
        torch.autograd.grad((slow_nll(head, inputs(s), targets, ids) * weight).sum(), parameters)
        for s in (1, 2)
    ]
    for _ in range(3):  # the second and third use the memory of the one before
        with Masks(1, 2, 3).use():
            for scale in (1, 2):
                loss = head.loss(inputs(scale), targets, weight).loss
                loss.backward(retain_graph=scale == 2)
        loss.backward()
        for parameter, one, two in zip(parameters, *expected, strict=True):
            wanted = (one + 2 * two).to_dense()
            torch.testing.assert_close(parameter.grad.to_dense(), wanted, rtol=1e-4, atol=1e-4)
        assert head.weight.grad.is_sparse == sparse
        head.keep_gradient()
        for parameter in parameters:
            parameter.grad = None


# ---- through the command line

WORDS = ["the", "of", "and", "to", "in", "is", "that", "it", "was", "for", "on", "as", "with"]


@pytest.mark.parametrize("sampler", ["log_uniform", "unigram"])
def test_a_run_logs_no_nll_of_what_it_trains_on(sampler, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    lines = [" ".join(WORDS[(i * j) % len(WORDS)] for j in range(1, 9)) for i in range(60)]
    (tmp_path / "text.txt").write_text("\n\n".join(lines))
    data = ["data=files", "data.path=text.txt", "data.unit=paragraph", "data.batch_size=4"]
    model = ["model.embedding_size=8", "model.hidden_size=8", "model.num_layers=1"]
    own = ["data.bptt=10", "threads=1", "trainer.precision=32-true", "name=a", "run_id=r"]
    head = ["head=sampled", f"head.sampler={sampler}", "head.num_samples=5"]
    keys = ["trainer.max_epochs=1", "trainer.log_every_n_steps=1", "optimizer=sgd"]
    assert cli.main(["train", *head, *keys, *data, *model, *own]) == 0
    rows = [json.loads(line) for line in Path("outputs/a/r/metrics.jsonl").read_text().splitlines()]
    training = [row for row in rows if "train/tokens_per_second" in row]
    assert len(training) > 5
    for row in training:
        assert 0 < row["train/sampled_nll"] < 5
        assert not {"train/nll", "train/perplexity"} & set(row)
    assert any("val/perplexity" in row for row in rows)


@pytest.mark.parametrize(("num_samples", "words"), [(60, 0), (61, 1)])
def test_as_many_samples_as_words_are_said_to_be_of_no_use(num_samples, words, caplog):
    make(num_samples=num_samples)
    said = "is no fewer than the 61 tokens of the vocabulary: head=full is exact"
    assert caplog.text.count(f"head.num_samples=61 {said}") == words
