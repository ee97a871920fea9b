"""The softmax over projected vectors against its equation, forward and backward."""

import pytest
import torch
import torch.nn.functional as F
from head_window import head_window
from torch import nn

from lmkit.assembly import build_model
from lmkit.config.check import check
from lmkit.config.compose import compose
from lmkit.head import FullSoftmax, MixtureOfSoftmaxes, ProjectedSoftmax
from lmkit.model import Embedding, Masks
from lmkit.model.dropout import dropout

VOCABULARY, HIDDEN, SIZE = 61, 20, 12


def make(tied=False, **settings):
    torch.manual_seed(0)
    embedding = Embedding(VOCABULARY, SIZE, init_range=0.5, tied=tied)
    settings = {"embedding": embedding, "init_range": 0.5, **settings}
    head = ProjectedSoftmax(HIDDEN, VOCABULARY, **settings)
    if head.bias is not None:
        nn.init.normal_(head.bias)
    return head, embedding


def case():
    return head_window(VOCABULARY, HIDDEN, 7)


def slow_log_prob(head, hidden, mask=1.0):
    """log softmax(U (mask * P h) + b), in float64."""
    vectors = torch.einsum("sh,lth->lts", head.projection.double(), hidden.double()) * mask
    logits = torch.einsum("vs,lts->ltv", head.weight.double(), vectors)
    return F.log_softmax(logits if head.bias is None else logits + head.bias.double(), -1)


def slow_nll(head, hidden, targets, mask=1.0):
    return -slow_log_prob(head, hidden, mask).gather(-1, targets[..., None])[..., 0]


KINDS = [{}, {"bias": False}, {"chunk_size": 2}, {"tied": True}]


@pytest.mark.parametrize("settings", KINDS)
def test_training_is_the_equation_forward_and_backward(settings):
    head, embedding = make(projection_dropout=0.4, **settings)
    hidden, targets, weight = case()
    head.train()
    with Masks(3, 1, 4).use():
        loss = head.loss(hidden, targets, weight)
        mask = dropout(torch.ones(3, 7, SIZE), 0.4, True, "head.projection")
    assert 0.2 < (mask == 0).float().mean() < 0.6
    expected = (slow_nll(head, hidden, targets, mask) * weight).sum()
    torch.testing.assert_close(loss.loss, expected.float())
    parameters = [hidden, *{*head.parameters(), *embedding.parameters()}]
    found = torch.autograd.grad(loss.loss, parameters, allow_unused=True)
    wanted = torch.autograd.grad(expected, parameters, allow_unused=True)
    for one, other in zip(found, wanted, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other.float(), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("settings", KINDS)
def test_evaluation_is_the_equation(settings):
    head, _ = make(projection_dropout=0.4, **settings)
    hidden, targets, _ = case()
    head.eval()
    with torch.no_grad():
        expected = slow_nll(head, hidden, targets).float()
        torch.testing.assert_close(head.nll(hidden, targets), expected)
        log_prob = torch.cat(list(head.log_prob(hidden))).view(3, 7, -1)
        torch.testing.assert_close(log_prob, slow_log_prob(head, hidden).float())
        positions = torch.tensor([0, 2, 2, 5])
        words = torch.tensor([4, 4, 9, 60])
        found = head.nll_at(hidden[0], positions, words)
        torch.testing.assert_close(found, -log_prob[0, positions, words], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("settings", KINDS)
def test_the_nll_with_dropout_has_the_masks_of_the_loss(settings):
    head, _ = make(projection_dropout=0.4, **settings)
    hidden, targets, _ = case()
    with Masks(3, 1, 4).use(), torch.no_grad():
        mask = dropout(torch.ones(3, 7, SIZE), 0.4, True, "head.projection")
        found = head.nll_with_dropout(hidden, targets)
        plain = head.nll(hidden, targets)
        left_out = head.eval().nll_with_dropout(hidden, targets)
    torch.testing.assert_close(found, slow_nll(head, hidden, targets, mask).float())
    assert not torch.isclose(found, plain).all()
    assert torch.equal(left_out, plain)


def test_the_projection_begins_orthogonal():
    projection = make()[0].projection
    torch.testing.assert_close(projection @ projection.T, torch.eye(SIZE), atol=1e-5, rtol=0)


@pytest.mark.parametrize("made", [ProjectedSoftmax, MixtureOfSoftmaxes])
def test_a_matrix_of_its_own_begins_by_the_size_of_the_embedding(made):
    torch.manual_seed(0)
    embedding = Embedding(2000, 16, init_range=None, tied=False)
    head = made(100, 2000, embedding=embedding)
    assert head.weight.std().item() == pytest.approx(16**-0.5, rel=0.03)


def test_only_in_kernels_do_threads_change_no_bit():
    """The product with P is PyTorch's."""
    assert FullSoftmax.any_threads
    assert not ProjectedSoftmax.any_threads


def test_hidden_vectors_of_another_size_than_the_tied_embedding_are_no_mistake():
    sizes = ["model.embedding_size=12", "model.hidden_sizes=[20,20]"]
    check(compose(["name=a", "head=projected", "model.tie_weights=true", *sizes]))


@pytest.mark.parametrize("head", ["projected", "mixture"])
def test_so_are_those_of_a_window_whose_hidden_layer_keeps_its_size(head):
    sizes = ["model.embedding_size=12", "model.hidden_size=20", "model.tie_weights=true"]
    config, *_ = check(compose(["name=a", f"head={head}", "model=window", *sizes]))
    model, made = build_model(config, VOCABULARY)
    tokens = torch.randint(VOCABULARY, (3, 7), generator=torch.Generator().manual_seed(1))
    resets = torch.zeros_like(tokens, dtype=torch.bool)
    hidden = model(tokens, resets, model.initial_state(3)).hidden
    assert hidden.shape == (3, 7, 20)
    assert made.weight is model.embedding.weight
    loss = made.loss(hidden, tokens, torch.ones(3, 7))
    loss.loss.backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in model.parameters())
    log_prob = torch.cat(list(made.log_prob(hidden))).view(3, 7, VOCABULARY)
    torch.testing.assert_close(log_prob.exp().sum(-1), torch.ones(3, 7))
