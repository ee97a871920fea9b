"""The adaptive softmax against its equations, forward and backward."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from compiled import num_threads
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lmkit import cli, kernels
from lmkit.config.check import check
from lmkit.config.compose import compose
from lmkit.errors import UserError
from lmkit.head import AdaptiveSoftmax, FullSoftmax
from lmkit.head.adaptive import check_cutoffs
from lmkit.model import Embedding

VOCABULARY, SIZE, CUTOFFS = 61, 32, [11, 30]


def make(tied=False, shuffled=False, **settings):
    """A head, its biases and tombstones drawn, and the embedding that it is tied to."""
    torch.manual_seed(0)
    embedding = Embedding(VOCABULARY, SIZE, init_range=0.3, tied=tied)
    settings = {"cutoffs": CUTOFFS, **settings}
    head = AdaptiveSoftmax(SIZE, VOCABULARY, embedding, init_range=0.3, **settings)
    if shuffled:
        head.learn_counts(torch.rand(VOCABULARY, dtype=torch.float64))
    for name, parameter in head.named_parameters():
        if "bias" in name or name == "tombstones":
            nn.init.normal_(parameter)
    return head, embedding


def case(head):
    torch.manual_seed(1)
    hidden = torch.randn(3, 17, SIZE, requires_grad=True)
    targets = torch.randint(VOCABULARY, (3, 17))
    weight = torch.rand(3, 17) * (torch.rand(3, 17) > 0.3)
    return hidden, targets, weight


def slow_log_prob(head, hidden):
    """Grave et al. 2017: words of the shortlist at once, others by way of their cluster."""
    order = head.get_extra_state().long()
    starts = [0, *head.cutoffs]
    words = [order[begin:end] for begin, end in zip(starts, [*head.cutoffs, None], strict=True)]
    zero = torch.zeros(VOCABULARY)
    parts, first = [], zero
    for index, ids in enumerate(words):
        inputs = hidden
        if head.tied:
            weight, bias = head.weight[ids], (zero if head.bias is None else head.bias)[ids]
            if index == 0:
                more = zero[: len(head.cutoffs)] if head.bias is None else head.tombstone_bias
                weight, bias = torch.cat([weight, head.tombstones]), torch.cat([bias, more])
        else:
            weight = head.weights[index]
            bias = zero[: len(weight)] if head.biases is None else head.biases[index]
            if index and head.div_value != 1:
                inputs = hidden @ head.projections[index - 1].T
        part = torch.log_softmax(inputs @ weight.T + bias, dim=-1)
        if index == 0:
            first = part
        cluster = first[..., len(words[0]) + index - 1, None] if index else 0
        parts.append(part[..., : len(ids)] + cluster)
    return torch.cat(parts, dim=-1)[..., order.argsort()]


def slow_nll(head, hidden, targets):
    return -slow_log_prob(head, hidden).gather(-1, targets[..., None])[..., 0]


KINDS = [
    {},
    {"bias": False},
    {"div_value": 1.0},
    {"div_value": 2.5, "shuffled": True},
    {"chunk_size": 5, "shuffled": True},
    {"cutoffs": [60]},
    {"cutoffs": []},
    {"cutoffs": [1, 2, 3, 4]},
    {"tied": True},
    {"tied": True, "bias": False},
    {"tied": True, "shuffled": True},
    {"tied": True, "shuffled": True, "chunk_size": 3, "div_value": 1.0},
    {"tied": True, "cutoffs": []},
]


@pytest.mark.parametrize("choice", ["compiled", "torch"])
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_it_is_the_slow_one(kind, choice):
    head, _ = make(**kind)
    hidden, targets, weight = case(head)
    nll = slow_nll(head, hidden, targets)
    expected = (nll * weight).sum()
    with kernels.use(choice):
        loss = head.loss(hidden, targets, weight)
        gradients = torch.autograd.grad(3 * loss.loss, [hidden, *head.parameters()])
        torch.testing.assert_close(head.nll(hidden, targets), nll)
        with torch.no_grad():
            torch.testing.assert_close(head.nll(hidden, targets), nll)
            log_prob = torch.cat(list(head.log_prob(hidden)))
            at = torch.tensor([0, 2, 2, 50]), torch.tensor([3, 0, 60, 31])
            found = head.nll_at(hidden.flatten(0, 1), *at)
            alone = head.loss(hidden, targets, weight)
    torch.testing.assert_close(loss.loss, expected)
    torch.testing.assert_close(loss.nll, nll[weight != 0].double().sum())
    assert not loss.nll.requires_grad
    assert alone.loss == loss.loss
    plain = torch.autograd.grad(3 * expected, [hidden, *head.parameters()])
    for one, other in zip(gradients, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(log_prob, slow_log_prob(head, hidden).flatten(0, 1))
    torch.testing.assert_close(log_prob.exp().sum(1), torch.ones(len(log_prob)))
    torch.testing.assert_close(found, -log_prob[at])


def test_it_is_that_of_torch():
    head, _ = make(bias=False, div_value=4.0)
    twin = nn.AdaptiveLogSoftmaxWithLoss(SIZE, VOCABULARY, CUTOFFS, div_value=4.0)
    with torch.no_grad():
        twin.head.weight.copy_(head.weights[0])
        for index, (projection, words) in enumerate(twin.tail):
            projection.weight.copy_(head.projections[index])
            words.weight.copy_(head.weights[index + 1])
        hidden, targets, weight = case(head)
        rows = hidden.flatten(0, 1)
        torch.testing.assert_close(torch.cat(list(head.log_prob(hidden))), twin.log_prob(rows))
        nll = -twin(rows, targets.flatten()).output
        torch.testing.assert_close(head.nll(hidden, targets).flatten(), nll)
        torch.testing.assert_close(
            head.loss(hidden, targets, weight).loss, (nll * weight.flatten()).sum()
        )
    assert [*map(len, head.weights)] == [len(twin.head.weight), 19, 31]
    assert [len(each) for each in head.projections] == [8, 2]


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("choice", ["compiled", "torch"])
def test_bf16_stays_near_fp32(kind, choice):
    head, _ = make(**kind)
    hidden, targets, weight = case(head)
    expected = head.loss(hidden, targets, weight).loss
    plain = torch.autograd.grad(expected, [hidden, *head.parameters()])
    nll = head.nll(hidden, targets)
    with kernels.use(choice), torch.autocast("cpu", torch.bfloat16):
        loss = head.loss(hidden, targets, weight).loss
        gradients = torch.autograd.grad(loss, [hidden, *head.parameters()])
        with torch.no_grad():
            found = head.nll(hidden.bfloat16(), targets)
    assert found.dtype == torch.float32
    torch.testing.assert_close(loss, expected, rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(found, nll, rtol=2e-2, atol=5e-2)
    for one, other in zip(gradients, plain, strict=True):
        assert one.dtype == other.dtype
        assert F.cosine_similarity(one.flatten(), other.flatten(), dim=0) > 0.998 or not one.any()


@pytest.mark.parametrize("kind", [{}, {"tied": True}, {"tied": True, "shuffled": True}], ids=str)
@pytest.mark.parametrize("choice", ["compiled", "torch"])
def test_clusters_without_a_target_have_gradients_of_zero(kind, choice):
    """Not none, which the processes of DDP would wait for, nor what memory held before."""
    head, _ = make(**kind)
    hidden, targets, weight = case(head)
    order = head.get_extra_state().long()
    common = order[targets % CUTOFFS[0]]
    dirty = [torch.full_like(each, 7.0) for each in head.parameters()]
    with kernels.use(choice):
        for parameter, gradient in zip(head.parameters(), dirty, strict=True):
            parameter.grad = gradient
        head.keep_gradient()  # memory that the next loss writes to
        head.zero_grad()
        loss = head.loss(hidden, common, weight).loss
    loss.backward()
    expected = torch.autograd.grad(
        (slow_nll(head, hidden, common) * weight).sum(), list(head.parameters()), allow_unused=True
    )
    for parameter, gradient in zip(head.parameters(), expected, strict=True):
        zero = torch.zeros_like(parameter)
        wanted = zero if gradient is None else gradient
        torch.testing.assert_close(parameter.grad, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [{}, {"tied": True}, {"tied": True, "shuffled": True}], ids=str)
def test_gradients_of_several_windows_and_updates_add_up(kind):
    head, embedding = make(**kind)
    hidden, targets, weight = case(head)
    tokens = torch.randint(VOCABULARY, (3, 17))
    parameters = list(dict.fromkeys([*head.parameters(), embedding.weight]))

    def gradients(inputs, loss):
        # Also by way of the look-up, as in a model.
        return torch.autograd.grad(loss(embedding(tokens).tanh() + inputs), parameters)

    expected = [
        gradients(scale * hidden.detach(), lambda x: (slow_nll(head, x, targets) * weight).sum())
        for scale in (1, 2)
    ]
    for _ in range(3):  # the second and third use the memory of the one before
        for scale in (1, 2):
            inputs = embedding(tokens).tanh() + scale * hidden.detach()
            loss = head.loss(inputs, targets, weight).loss
            loss.backward(retain_graph=scale == 2)
        loss.backward()
        for parameter, one, two in zip(parameters, *expected, strict=True):
            found = parameter.grad.to_dense() if parameter.grad.is_sparse else parameter.grad
            torch.testing.assert_close(found, one + 2 * two, rtol=1e-4, atol=1e-4)
        head.keep_gradient()
        for parameter in parameters:
            parameter.grad = None


@pytest.mark.parametrize("choice", ["compiled", "torch"])
def test_no_position_without_weight_counts(choice):
    head, _ = make()
    hidden, targets, weight = case(head)
    spoilt = hidden.detach().clone()
    spoilt[weight == 0] = 1e4
    with kernels.use(choice):
        found, expected = (head.loss(x, targets, weight) for x in (spoilt, hidden))
    assert found.loss == expected.loss
    assert found.nll == expected.nll


def test_the_order_of_words_is_that_of_counts_and_goes_with_the_weights():
    head, _ = make()
    assert head.is_ordered
    head.learn_counts(torch.tensor([1.0, 5.0, 5.0, 9.0, *[0.5] * (VOCABULARY - 4)]))
    assert head.get_extra_state()[:6].tolist() == [3, 1, 2, 0, 4, 5]
    other, _ = make(shuffled=True)
    other.load_state_dict(head.state_dict())
    hidden, targets, _ = case(head)
    assert torch.equal(other.nll(hidden, targets), head.nll(hidden, targets))
    head.learn_counts(torch.linspace(9, 1, VOCABULARY))
    assert head.is_ordered


def test_a_frequent_word_is_in_the_shortlist_whatever_its_id():
    head, _ = make()
    counts = torch.zeros(VOCABULARY)
    counts[VOCABULARY - 1] = 10
    head.learn_counts(counts)
    hidden, *_ = case(head)
    first = torch.log_softmax(hidden @ head.weights[0].T + head.biases[0], dim=-1)[..., 0]
    targets = torch.full(first.shape, VOCABULARY - 1)
    torch.testing.assert_close(head.nll(hidden, targets), -first)


@pytest.mark.parametrize("kind", [{"div_value": 1.0}, {"tied": True, "shuffled": True}], ids=str)
def test_losses_are_bit_for_bit_the_same_with_any_number_of_threads(kind):
    head, _ = make(**kind)
    assert head.any_threads
    assert not make()[0].any_threads
    if kernels.load()[0] is None:
        pytest.skip(kernels.load()[1])
    hidden, targets, weight = (
        torch.cat([each] * 40) for each in (case(head)[0].detach(), *case(head)[1:])
    )
    found = []
    for number in (1, 2, 5):
        with num_threads(number):
            loss = head.loss(hidden.requires_grad_(), targets, weight).loss
            with torch.no_grad():
                nll = head.nll(hidden, targets)
            found.append([loss, nll, *torch.autograd.grad(loss, [hidden, *head.parameters()])])
    for one in found[1:]:
        assert all(map(torch.equal, one, found[0]))


@given(st.integers(1, 2_000_000))
def test_cutoffs_that_are_chosen_divide_the_vocabulary(size):
    cutoffs = check_cutoffs(None, size)
    assert cutoffs == sorted(set(cutoffs))
    assert all(0 < cutoff < size for cutoff in cutoffs)
    assert bool(cutoffs) == (size > 1)
    assert all(cutoff >= 2000 for cutoff in cutoffs[:-1])


def test_the_cutoffs_of_known_vocabularies():
    assert check_cutoffs(None, 267_735) == [4183, 16733, 66933]
    assert check_cutoffs(None, 33_278) == [2079, 8319]
    assert check_cutoffs(None, 257) == [64]
    head, _ = make(tied=True)
    assert repr(head) == "AdaptiveSoftmax(cutoffs=[11,30], div_value=1, tied=True)"


def test_matrices_of_clusters_begin_by_their_width_and_projections_by_what_they_read():
    torch.manual_seed(0)
    head = AdaptiveSoftmax(256, 4000, cutoffs=[1000, 2000])
    assert [weight.shape[1] for weight in head.weights] == [256, 64, 16]
    for weight in head.weights:
        assert weight.std().item() == pytest.approx(weight.shape[1] ** -0.5, rel=0.03)
    assert [len(projection) for projection in head.projections] == [64, 16]
    for projection in head.projections:
        assert projection.std().item() == pytest.approx(256**-0.5, rel=0.05)
    for weight in AdaptiveSoftmax(256, 4000, cutoffs=[1000, 2000], init_range=0.2).weights:
        assert weight.abs().max().item() == pytest.approx(0.2, rel=0.01)


def test_it_has_fewer_parameters_than_the_full_softmax():
    full = sum(p.numel() for p in FullSoftmax(200, 33_278).parameters())
    adaptive = sum(p.numel() for p in AdaptiveSoftmax(200, 33_278).parameters())
    assert adaptive < 0.25 * full


def test_a_vocabulary_below_the_cutoffs_is_refused():
    expected = (
        r"head\.cutoffs=\[11,61\]: the vocabulary has 61 tokens, and the last cutoff must be below "
        r"that; lower it, or leave head\.cutoffs out"
    )
    with pytest.raises(UserError, match=expected):
        make(cutoffs=[11, 61])


@pytest.mark.parametrize("cutoffs", [[8, 8], [12, 8]])
def test_cutoffs_that_do_not_rise_are_refused_by_head_and_config_alike(cutoffs):
    expected = f"head.cutoffs=[{cutoffs[0]},8]: each must be above the one before"
    with pytest.raises(UserError) as refused:
        make(cutoffs=cutoffs)
    assert str(refused.value) == expected
    assert AdaptiveSoftmax.mistakes({"cutoffs": cutoffs}, "head") == [expected]


def test_the_last_cutoff_must_be_below_the_vocabulary_already_in_the_config():
    config = {"head": {"cutoffs": [8, 61]}}
    assert AdaptiveSoftmax.misfits(config, 62) == AdaptiveSoftmax.misfits(config, None) == []
    (said,) = AdaptiveSoftmax.misfits(config, 61)
    assert said.startswith("head.cutoffs=[8,61]: the vocabulary has 61 tokens")


def test_a_projection_of_tied_rows_is_refused():
    check(compose(["name=a", "head=adaptive", "model.tie_weights=true", "head.div_value=1"]))
    with pytest.raises(UserError, match=r"head\.div_value=4 but model\.tie_weights=true: "):
        make(tied=True, div_value=4.0)


# ---- through the command line

WORDS = ["the", "of", "and", "to", "in", "is", "that", "it", "was", "for", "on", "as", "with"]


@pytest.fixture
def settings(tmp_path, monkeypatch) -> list[str]:
    monkeypatch.chdir(tmp_path)
    lines = [" ".join(WORDS[(i * j) % len(WORDS)] for j in range(1, 9)) for i in range(60)]
    (tmp_path / "text.txt").write_text("\n\n".join(lines))
    data = ["data=files", "data.path=text.txt", "data.unit=paragraph", "data.batch_size=4"]
    model = ["model.embedding_size=8", "model.hidden_size=8", "model.num_layers=1"]
    own = ["data.bptt=10", "threads=1", "trainer.precision=32-true", "name=a", "run_id=r"]
    return ["train", "head=adaptive", "trainer.max_epochs=1", *data, *model, *own]


def test_contradictions_are_told_before_anything_is_read(settings, capfd):
    wrong = ["head.div_value=2", "head.cutoffs=[8,4]"]
    assert cli.main([*settings, *wrong]) == 2
    assert capfd.readouterr().err.splitlines() == [
        "error: 2 mistakes:",
        "  head.cutoffs=[8,4]: each must be above the one before",
        "  head.div_value=2 but model.tie_weights=true: rows of a tied matrix have the size of the "
        "hidden vector; set head.div_value=1, or model.tie_weights=false",
    ]
    assert not Path("outputs").exists()


def test_cutoffs_beyond_the_vocabulary_leave_no_run_behind(settings, capfd):
    assert cli.main([*settings, "tokenizer=word", "head.cutoffs=[8,400]"]) == 2
    assert "  head.cutoffs=[8,400]: the vocabulary has 15 tokens" in capfd.readouterr().err
    assert not Path("outputs/a").exists()


def test_the_order_of_words_that_inference_has_moved_serves_gradients_too():
    """Dynamic evaluation on an accelerator: the device `meta` stands for one."""
    head, _ = make(tied=True, shuffled=True)
    head.to("meta")
    with torch.inference_mode():
        order, places = head._order()
    assert order.device == places.device == torch.device("meta")
    assert not order.is_inference()
    assert not places.is_inference()
    parts = [tensor for part in head._parts() for tensor in part]
    learnt = [head.weight, head.bias]
    gradients = torch.autograd.grad(sum(tensor.sum() for tensor in parts), learnt)
    assert [each.shape for each in gradients] == [each.shape for each in learnt]
    assert head._order()[0] is order
    head.learn_counts(torch.rand(VOCABULARY, dtype=torch.float64))
    assert head._order()[0] is not order


@pytest.mark.parametrize("tied", [True, False])
def test_a_run_with_ids_that_are_in_no_order(settings, capfd, tied):
    """Bytes: the shortlist has the letters, and the run says what it said in training."""
    keys = ["tokenizer=bytes", f"model.tie_weights={tied}".lower(), "head.cutoffs=[12]"]
    assert cli.main([*settings, *keys]) == 0
    path = Path("outputs/a/r")
    saved = torch.load(path / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    frequent = bytes(saved["head._extra_state"][:8].tolist())
    assert set(frequent) < set(b" aehinostw")
    summary = json.loads((path / "summary.json").read_text())
    capfd.readouterr()
    assert cli.main(["evaluate", "r", "split=valid", "format=json", "threads=1"]) == 0
    out = capfd.readouterr().out
    (found,) = json.loads(out[out.index("\n{") :])["results"]
    assert found["nll"] == pytest.approx(summary["best/val/nll"], abs=1e-6)
