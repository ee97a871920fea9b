"""A product for each position, whose weight gets its gradient from all of them at once."""

import pytest
import torch

from lmkit.model.products import Products

LANES, TIME, ROWS, SIZE = 3, 7, 5, 4


def recurrence(product, start):
    """Vectors that depend on one another, as those of a recurrence do."""
    outputs, vector = [], start
    for t in range(TIME):
        sums = product(t, vector)
        vector = sums[:, :SIZE].tanh()
        outputs.append(sums)
    return torch.stack(outputs)


def gradients(product, start, *parameters):
    torch.manual_seed(1)
    outputs = recurrence(product, start)
    return outputs, torch.autograd.grad((outputs * torch.randn_like(outputs)).sum(), parameters)


@pytest.mark.parametrize("has_bias", [True, False])
def test_gradients_are_those_of_autograd(has_bias):
    torch.manual_seed(0)
    weight = torch.randn(ROWS, SIZE, requires_grad=True)
    added = torch.randn(LANES, TIME, ROWS, requires_grad=True)
    start = torch.randn(LANES, SIZE, requires_grad=True)
    parameters = (weight, start, *([added] if has_bias else []))
    made = Products(weight, added) if has_bias else Products.alone(weight, LANES, TIME)

    def product(t, vector):
        return vector @ weight.T + (added[:, t] if has_bias else 0)

    found, of_found = gradients(made, start, *parameters)
    expected, of_expected = gradients(product, start, *parameters)
    torch.testing.assert_close(found, expected)
    for one, other in zip(of_found, of_expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_without_a_graph_no_vector_is_kept():
    weight = torch.randn(ROWS, SIZE, requires_grad=True)
    with torch.no_grad():
        product = Products.alone(weight, LANES, TIME)
        found = recurrence(product, torch.ones(LANES, SIZE))
    assert product._vectors is None
    assert not found.requires_grad


def test_a_gradient_of_a_gradient_is_refused():
    weight = torch.randn(ROWS, SIZE, requires_grad=True)
    outputs = recurrence(Products.alone(weight, LANES, TIME), torch.ones(LANES, SIZE))
    (grad,) = torch.autograd.grad(outputs.square().sum(), [weight], create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        grad.sum().backward()
