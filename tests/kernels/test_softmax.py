"""The loss by odds, on compiled kernels, against PyTorch's operators."""

import pytest
import torch
import torch.nn.functional as F
from compiled import DTYPES, needs_kernels, num_threads
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lmkit.head import FullSoftmax
from lmkit.kernels import softmax

pytestmark = needs_kernels


def loss_case(rows, hidden_size, size, biased, scale, dtype):
    torch.manual_seed(rows * size)
    hidden = torch.randn(rows, hidden_size).to(dtype)
    weight = scale * torch.randn(size, hidden_size) / hidden_size**0.5
    bias = torch.randn(size) if biased else None
    row_weight = torch.rand(rows) + 0.1
    return hidden, weight, bias, torch.randint(size, (rows,)), row_weight


def loss_by_odds(hidden, weight, bias, targets, row_weight, before=None):
    """nll, and the gradients by hidden, weight and bias, on top of `before`."""
    kept = hidden.new_empty(softmax.num_odds(len(hidden), len(weight)))
    nll, total = softmax.nll_and_odds(hidden, weight, bias, targets, kept)
    into = torch.full_like(weight, torch.nan) if before is None else before.clone()
    grad_bias = None if bias is None else torch.zeros_like(bias)
    given = (hidden, weight, targets, row_weight, total, kept, into, grad_bias)
    return nll, softmax.gradients(*given, add=before is not None), into, grad_bias


def loss_by_pytorch(hidden, weight, bias, targets, row_weight):
    """The same in float64, of the matrix as it is in the type of the products."""
    matrix = weight.to(hidden.dtype).double().requires_grad_()
    rows = hidden.double().requires_grad_()
    offset = torch.zeros(len(weight)) if bias is None else bias
    offset = offset.double().requires_grad_()
    nll = F.cross_entropy(rows @ matrix.T + offset, targets, reduction="none")
    (nll * row_weight).sum().backward()
    return nll.detach(), rows.grad, matrix.grad, None if bias is None else offset.grad


def terms_of_gradients(hidden, weight, bias, targets, row_weight):
    """What the gradients by hidden, weight and bias sum up, each term by its size: rounding is a
    part of that, whatever of it cancels out."""
    matrix, rows = weight.to(hidden.dtype).double(), hidden.double()
    offset = 0 if bias is None else bias.double()
    chances = torch.softmax(rows @ matrix.T + offset, -1)
    sizes = (chances + F.one_hot(targets, len(weight))) * row_weight[:, None].double()
    return sizes @ matrix.abs(), sizes.T @ rows.abs(), None if bias is None else sizes.sum(0)


def near(found, expected, tolerance):
    """Equal to within a part of the largest element, below which rounding has no bound."""
    error = (found.double() - expected.double()).abs().max()
    return error <= tolerance * (1 + expected.double().abs().max())


@pytest.mark.parametrize("dtype", DTYPES)
@given(
    *(st.integers(1, 90), st.integers(1, 40), st.integers(2, 230), st.booleans()),
    st.sampled_from([0.1, 1.0, 5.0, 300.0]),
)
@settings(max_examples=60)
@example(rows=59, hidden_size=1, size=2, biased=False, scale=300.0)
def test_the_loss_by_odds_is_that_of_pytorch(dtype, rows, hidden_size, size, biased, scale):
    """Sizes on both sides of every block, and logits beyond what an exponential can hold."""
    case = loss_case(rows, hidden_size, size, biased, scale, dtype)
    nll, *found = loss_by_odds(*case)
    expected_nll, *expected = loss_by_pytorch(*case)
    assert near(nll, expected_nll, 2e-6 * max(scale, 1))
    exact = 1e-5 * max(scale, 1)
    tolerances = [exact * scale, exact, exact]
    terms = terms_of_gradients(*case)
    for one, other, tolerance, size in zip(found, expected, tolerances, terms, strict=True):
        assert (one is None) == (other is None)
        if one is None:
            continue
        if dtype == torch.float32:
            assert near(one, other, tolerance)
        else:  # a term is rounded twice at most, by 1 / 256 of it each time
            assert ((one.double() - other).abs() <= size / 128 + 1e-6).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_loss_by_odds_of_many_words_and_chunks(dtype):
    """More words than a product takes at a time, and gradients on top of others."""
    case = loss_case(70, 33, 2500, True, 1.0, dtype)
    before = torch.randn(2500, 33)
    alone, added = loss_by_odds(*case), loss_by_odds(*case, before=before)
    assert near(alone[2], loss_by_pytorch(*case)[2], 1e-6 if dtype == torch.float32 else 1e-2)
    torch.testing.assert_close(added[2], alone[2] + before, atol=1e-6, rtol=1e-5)
    assert torch.equal(added[1], alone[1])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", [(70, 33, 1000), (5, 7, 12), (300, 20, 60), (33, 70, 26_000)])
def test_the_loss_by_odds_is_bit_for_bit_the_same_with_any_number_of_threads(dtype, sizes):
    """Few items of work and many, in each of the dimensions that they are cut in."""
    case = loss_case(*sizes, True, 1.0, dtype)
    before = torch.randn(sizes[2], sizes[1])
    expected = loss_by_odds(*case, before=before)
    for number in (1, 3, 7):
        with num_threads(number):
            found = loss_by_odds(*case, before=before)
        for one, same in zip(expected, found, strict=True):
            assert torch.equal(one, same)


def test_the_nll_without_gradients_is_the_same():
    hidden, weight, bias, targets, _ = loss_case(37, 20, 300, True, 1.0, torch.float32)
    alone, _ = softmax.nll_and_odds(hidden, weight, bias, targets, None)
    assert torch.equal(alone, loss_by_odds(hidden, weight, bias, targets, torch.ones(37))[0])
    assert (alone >= 0).all()


def test_a_row_of_weight_0_is_not_read():
    head = FullSoftmax(12, 301)
    hidden, targets = torch.randn(2, 40, 12), torch.randint(301, (2, 40))
    weight = (torch.rand(2, 40) < 0.7).float()
    spoilt = torch.where(weight[..., None] > 0, hidden, torch.nan).requires_grad_()
    wrong = targets.masked_fill(weight == 0, 10**9)
    for rows, aims in ((spoilt, wrong), (spoilt, targets)):
        loss = head.loss(rows, aims, weight).loss
        torch.testing.assert_close(loss, head.loss(hidden, targets, weight).loss)
        (grad,) = torch.autograd.grad(loss, rows)
        assert (grad[weight == 0] == 0).all()
        assert torch.isfinite(grad).all()


def test_a_window_without_a_target_has_no_gradient():
    head = FullSoftmax(12, 301)
    hidden = torch.randn(2, 4, 12, requires_grad=True)
    loss = head.loss(hidden, torch.zeros(2, 4, dtype=torch.int64), torch.zeros(2, 4)).loss
    loss.backward()
    assert loss == 0
    assert all((x.grad == 0).all() for x in (hidden, head.weight, head.bias))


@pytest.mark.parametrize("target", [-1, 40])
def test_the_loss_by_odds_refuses_a_target_that_there_is_no_logit_of(target):
    hidden, weight, bias, _, _ = loss_case(2, 5, 40, True, 1.0, torch.float32)
    with pytest.raises(IndexError, match="there are 40 logits"):
        softmax.nll_and_odds(hidden, weight, bias, torch.tensor([3, target]), None)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_the_loss_by_odds_shows_what_is_not_finite(bad):
    """So that a run which has diverged is seen to have."""
    hidden, weight, bias, targets, _ = loss_case(2, 5, 40, True, 1.0, torch.float32)
    hidden[0, 3] = bad
    nll, _ = softmax.nll_and_odds(hidden, weight, bias, targets, None)
    assert not torch.isfinite(nll[0])
    assert torch.isfinite(nll[1])


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_certain_prediction_has_no_gradient(dtype):
    """What rounding takes from a weight it takes from both sides."""
    hidden = torch.tensor([[1.3, 0.7]], dtype=dtype)
    weight = torch.tensor([[211.3, 77.7], [-150.1, -99.9]])
    nll, *found = loss_by_odds(hidden, weight, torch.zeros(2), torch.tensor([0]), torch.ones(1))
    assert float(nll) < 1e-4  # rounding of a logit of 329
    assert all(gradient.abs().max() < 1e-5 for gradient in found)
