"""The mixture of softmaxes against its equation, forward and backward."""

import pytest
import torch
import torch.nn.functional as F
from head_window import head_window
from slow_mixture import slow_nll, slow_prob
from torch import nn

from lmkit import kernels
from lmkit.head import FullSoftmax, MixtureOfSoftmaxes
from lmkit.model import Embedding, Masks
from lmkit.model.dropout import dropout

VOCABULARY, HIDDEN, SIZE = 61, 20, 12


def make(tied=False, own=True, **settings):
    torch.manual_seed(0)
    embedding = Embedding(VOCABULARY, SIZE, init_range=0.5, tied=tied)
    settings = {"num_experts": 4, **settings}
    head = MixtureOfSoftmaxes(HIDDEN, VOCABULARY, embedding if own else None, 0.5, **settings)
    if head.bias is not None:
        nn.init.normal_(head.bias)
    nn.init.normal_(head.prior.weight)
    nn.init.normal_(head.experts.weight)
    return head, embedding


def case():
    return head_window(VOCABULARY, HIDDEN, 7)


KINDS = [
    {},
    {"bias": False},
    {"num_experts": 1},
    {"chunk_size": 1},
    {"chunk_size": 9},
    {"chunk_size": 1000},
    {"tied": True},
    {"tied": True, "bias": False, "chunk_size": 13},
    {"own": False},
]


@pytest.mark.parametrize("choice", ["compiled", "torch"])
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_it_is_the_slow_one(kind, choice):
    head, _ = make(**kind)
    hidden, targets, weight = case()
    nll = slow_nll(head, hidden, targets)
    expected = (nll * weight).sum()
    with kernels.use(choice):
        loss = head.loss(hidden, targets, weight)
        gradients = torch.autograd.grad(3 * loss.loss, [hidden, *head.parameters()])
        torch.testing.assert_close(head.nll(hidden, targets), nll.float())
        with torch.no_grad():
            torch.testing.assert_close(head.nll(hidden, targets), nll.float())
            chunks = list(head.log_prob(hidden))
            at = torch.tensor([0, 2, 2, 20]), torch.tensor([3, 0, 60, 31])
            found = head.nll_at(hidden.flatten(0, 1), *at)
            alone = head.loss(hidden, targets, weight)
        torch.testing.assert_close(torch.cat(list(head.log_prob(hidden))), torch.cat(chunks))
    torch.testing.assert_close(loss.loss, expected.float())
    torch.testing.assert_close(loss.nll, nll[weight != 0].sum(), rtol=1e-6, atol=1e-5)
    assert not loss.nll.requires_grad
    assert alone.loss == loss.loss
    plain = torch.autograd.grad(3 * expected, [hidden, *head.parameters()])
    for one, other in zip(gradients, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    log_prob = torch.cat(chunks)
    torch.testing.assert_close(log_prob, slow_prob(head, hidden).flatten(0, 1).log().float())
    torch.testing.assert_close(log_prob.exp().sum(1), torch.ones(len(log_prob)))
    torch.testing.assert_close(found, -log_prob[at])
    if kind.get("chunk_size") in (1, 9):  # at least the experts of one position
        assert max(map(len, chunks)) == max(kind["chunk_size"] // 4, 1)


@pytest.mark.parametrize(("chunk_size", "positions"), [(1, 1), (9, 2), (27, 6), (1000, 21)])
def test_no_more_logits_exist_than_those_of_a_chunk(chunk_size, positions):
    head, _ = make(chunk_size=chunk_size)
    with kernels.use("torch"):
        head.loss(*case())
    assert head._memory._scratch["logits"].numel() == positions * 4 * VOCABULARY


@pytest.mark.parametrize("choice", ["compiled", "torch"])
@pytest.mark.parametrize("kind", KINDS[:7], ids=str)
def test_bf16_stays_near_fp32(kind, choice):
    head, _ = make(**kind)
    hidden, targets, weight = case()
    expected = head.loss(hidden, targets, weight).loss
    plain = torch.autograd.grad(expected, [hidden, *head.parameters()])
    nll = head.nll(hidden, targets)
    with kernels.use(choice), torch.autocast("cpu", torch.bfloat16):
        loss = head.loss(hidden, targets, weight).loss
        gradients = torch.autograd.grad(loss, [hidden, *head.parameters()])
        with torch.no_grad():
            found = head.nll(hidden.bfloat16(), targets)
            log_prob = torch.cat(list(head.log_prob(hidden.bfloat16())))
    assert found.dtype == log_prob.dtype == torch.float32
    torch.testing.assert_close(loss, expected, rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(found, nll, rtol=3e-2, atol=6e-2)
    torch.testing.assert_close(log_prob.exp().sum(1), torch.ones(21), rtol=1e-3, atol=1e-3)
    for one, other in zip(gradients, plain, strict=True):
        assert one.dtype == other.dtype
        if one.any():  # a single expert's prior has none
            assert F.cosine_similarity(one.flatten(), other.flatten(), dim=0) > 0.998


def test_one_expert_is_the_full_softmax_of_its_vector():
    head, embedding = make(tied=True, num_experts=1)
    hidden, targets, weight = case()
    full = FullSoftmax(SIZE, VOCABULARY, embedding)
    with torch.no_grad():
        full.bias.copy_(head.bias)
    latent = torch.tanh(head.experts(hidden))
    expected, found = full.loss(latent, targets, weight), head.loss(hidden, targets, weight)
    torch.testing.assert_close(found.loss, expected.loss)
    torch.testing.assert_close(found.nll, expected.nll)


@pytest.mark.parametrize("choice", ["compiled", "torch"])
def test_no_position_without_weight_counts(choice):
    head, _ = make()
    hidden, targets, weight = case()
    spoilt = hidden.detach().clone()
    spoilt[weight == 0] = 1e4
    with kernels.use(choice):
        found, expected = (head.loss(x, targets, weight) for x in (spoilt, hidden))
    assert found.loss == expected.loss
    assert found.nll == expected.nll


@pytest.mark.parametrize("tied", [True, False])
def test_gradients_of_several_windows_and_updates_add_up(tied):
    head, embedding = make(tied=tied)
    hidden, targets, weight = case()
    tokens = torch.randint(VOCABULARY, (3, 7))
    widen = torch.randn(SIZE, HIDDEN)
    parameters = list(dict.fromkeys([*head.parameters(), embedding.weight]))

    def inputs(scale):
        return embedding(tokens).tanh() @ widen + scale * hidden.detach()

    expected = [
        torch.autograd.grad((slow_nll(head, inputs(s), targets) * weight).sum(), parameters)
        for s in (1, 2)
    ]
    for _ in range(3):  # the second and third use the memory of the one before
        for scale in (1, 2):
            loss = head.loss(inputs(scale), targets, weight).loss
            loss.backward(retain_graph=scale == 2)
        loss.backward()
        for parameter, one, two in zip(parameters, *expected, strict=True):
            found = parameter.grad.to_dense() if parameter.grad.is_sparse else parameter.grad
            torch.testing.assert_close(found, one + 2 * two, rtol=1e-4, atol=1e-4)
        head.keep_gradient()
        for parameter in parameters:
            parameter.grad = None


def test_weights_far_below_half_precision_scale_loss_and_gradient():
    head, _ = make()
    hidden, targets, weight = case()
    parameters = [hidden, *head.parameters()]
    large = head.loss(hidden, targets, weight).loss
    small = head.loss(hidden, targets, weight * 2.0**-60).loss
    assert small == large * 2.0**-60
    for one, other in zip(
        torch.autograd.grad(small, parameters), torch.autograd.grad(large, parameters), strict=True
    ):
        torch.testing.assert_close(one * 2.0**60, other)


@pytest.mark.parametrize("choice", ["compiled", "torch"])
@pytest.mark.parametrize("locked", [True, False])
def test_latent_dropout_is_one_mask_for_all_positions_of_a_lane_or_one_for_each(choice, locked):
    head, _ = make(latent_dropout=0.5, locked_latent=locked)
    hidden, targets, weight = case()
    ones = torch.ones(3, 1 if locked else hidden.shape[1], 4 * SIZE)
    with Masks(1, 2, 3).use():
        mask = dropout(ones, 0.5, True, "head.latent")
        with kernels.use(choice):
            loss = head.loss(hidden, targets, weight).loss
    assert 0.3 < float((mask == 0).float().mean()) < 0.7
    expected = (slow_nll(head, hidden, targets, mask) * weight).sum()
    torch.testing.assert_close(loss, expected.float())
    plain = torch.autograd.grad(expected, [hidden, *head.parameters()])
    found = torch.autograd.grad(loss, [hidden, *head.parameters()])
    for one, other in zip(found, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_nothing_is_left_out_of_what_is_evaluated():
    head, _ = make(latent_dropout=0.5)
    hidden, targets, weight = case()
    assert head.training
    expected = slow_nll(head, hidden, targets).float()
    torch.testing.assert_close(head.nll(hidden, targets), expected)
    assert head.loss(hidden, targets, weight).loss != head.loss(hidden, targets, weight).loss
    head.eval()
    expected = (slow_nll(head, hidden, targets) * weight).sum().float()
    torch.testing.assert_close(head.loss(hidden, targets, weight).loss, expected)


@pytest.mark.parametrize("kind", [{}, {"chunk_size": 9}, {"tied": True, "bias": False}], ids=str)
@pytest.mark.parametrize("locked", [True, False])
@pytest.mark.parametrize("choice", ["compiled", "torch"])
def test_the_nll_with_dropout_has_the_masks_of_the_loss(choice, locked, kind):
    head, _ = make(latent_dropout=0.5, locked_latent=locked, **kind)
    hidden, targets, _ = case()
    ones = torch.ones(3, 1 if locked else hidden.shape[1], 4 * SIZE)
    with Masks(1, 2, 3).use(), torch.no_grad(), kernels.use(choice):
        mask = dropout(ones, 0.5, True, "head.latent")
        found = head.nll_with_dropout(hidden, targets)
        left_out = head.eval().nll_with_dropout(hidden, targets)
        plain = head.nll(hidden, targets)
    torch.testing.assert_close(found, slow_nll(head, hidden, targets, mask).float())
    assert not torch.isclose(found, plain).all()
    torch.testing.assert_close(left_out, plain)


def test_an_improbable_word_has_a_finite_nll():
    head, _ = make()
    hidden, targets, _ = case()
    with torch.no_grad():
        head.bias[targets[0, 0]] = -200.0
        nll, log_prob = head.nll(hidden, targets), torch.cat(list(head.log_prob(hidden)))
    assert 150 < nll[0, 0] < 300
    torch.testing.assert_close(-log_prob[0, targets[0, 0]], nll[0, 0])


def test_the_number_of_parameters():
    head, embedding = make(tied=True)
    own = sum(p.numel() for p in head.parameters()) - embedding.weight.numel()
    assert own == VOCABULARY + 4 * HIDDEN + 4 * SIZE * (HIDDEN + 1)
