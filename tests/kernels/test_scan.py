"""The linear recurrence against a plain loop, in all the ways in which it is computed."""

import pytest
import torch
from compiled import needs_kernels, num_threads
from hypothesis import given, settings
from hypothesis import strategies as st

from lmkit import kernels
from lmkit.kernels.scan import doubled, linear_scan, looped

WAYS = ["compiled", "looped", "doubled"]


def case(lanes, time, size, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    shape = (lanes, time, size)
    decay = torch.rand(shape, generator=generator, dtype=dtype)
    update = torch.randn(shape, generator=generator, dtype=dtype)
    state = torch.randn(lanes, size, generator=generator, dtype=dtype)
    resets = torch.rand(lanes, time, generator=generator) < 0.2
    return [t.requires_grad_() for t in (decay, update)] + [resets, state.requires_grad_()]


def plain(decay, update, resets, state):
    """h_t = a_t h_{t-1} + b_t, as it is written."""
    rows = []
    for t in range(decay.shape[1]):
        state = decay[:, t] * state + update[:, t]
        state = torch.where(resets[:, t, None], torch.zeros_like(state), state)
        rows.append(state)
    return torch.stack(rows, 1)


def results(function, arguments):
    hidden = function(*arguments)
    cotangent = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(5))
    wanted = [arguments[0], arguments[1], arguments[3]]
    return [hidden, *torch.autograd.grad((hidden * cotangent).sum(), wanted)]


@pytest.fixture(params=WAYS)
def way(request, monkeypatch):
    """One of the three ways."""
    if request.param == "compiled":
        if kernels.load()[0] is None:
            pytest.skip(kernels.load()[1])
        yield request.param
        return
    function = looped if request.param == "looped" else doubled
    monkeypatch.setattr("lmkit.kernels.scan.scan", function)
    with kernels.use("torch"):
        yield request.param


sizes = st.tuples(st.integers(1, 4), st.integers(1, 19), st.integers(1, 70))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_and_gradients_are_those_of_a_plain_loop(way, dtype):
    @given(sizes, st.integers(0, 99))
    @settings(max_examples=25)
    def check(shape, seed):
        arguments = case(*shape, seed=seed, dtype=dtype)
        tolerance = {torch.float32: 1e-5, torch.float64: 1e-12}[dtype]
        pairs = zip(results(linear_scan, arguments), results(plain, arguments), strict=True)
        for found, expected in pairs:
            assert found.dtype == dtype
            torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)

    check()


def test_bf16_is_computed_in_fp32(way):
    arguments = case(3, 30, 20)
    low = [t.detach().bfloat16() if t.is_floating_point() else t for t in arguments]
    found = linear_scan(*low)
    exact = linear_scan(*(t.float() if t.is_floating_point() else t for t in low))
    assert found.dtype == torch.float32
    assert torch.equal(found, exact)
    low[0].requires_grad_()
    (grad,) = torch.autograd.grad(linear_scan(*low).sum(), low[0])
    assert grad.dtype == torch.bfloat16


@pytest.mark.parametrize("function", [looped, doubled])
def test_numerical_gradients(function, monkeypatch):
    monkeypatch.setattr("lmkit.kernels.scan.scan", function)
    decay, update, resets, state = case(2, 7, 3, dtype=torch.float64)
    resets[0, 3] = resets[1, 0] = True

    def of(*tensors):
        return linear_scan(tensors[0], tensors[1], resets, tensors[2])

    assert torch.autograd.gradcheck(of, (decay, update, state))
    assert torch.autograd.gradgradcheck(of, (decay, update, state))


def test_a_reset_hides_all_that_was_before_bit_for_bit(way):
    decay, update, resets, state = case(2, 23, 20)
    resets = torch.zeros_like(resets)
    resets[:, 9] = True
    other = [decay.detach().clone(), update.detach().clone(), resets, state.detach() * 3]
    other[0][:, :9] = 0.5
    other[1][:, :10] = 7.0  # what a reset position itself computes is hidden too
    hidden, changed = linear_scan(decay, update, resets, state), linear_scan(*other)
    assert (hidden[:, 9] == 0).all()
    assert torch.equal(hidden[:, 9:], changed[:, 9:])
    assert not torch.equal(hidden[:, :9], changed[:, :9])
    for grad in torch.autograd.grad(hidden[:, 9:].square().sum(), [decay, update]):
        assert (grad[:, :10] == 0).all()
    loss = linear_scan(decay, update, resets, state)[:, 9:].sum()
    assert (torch.autograd.grad(loss, state)[0] == 0).all()


@needs_kernels
@pytest.mark.parametrize("shape", [(20, 35, 200), (1, 3, 5), (7, 130, 65)])
def test_it_is_bit_for_bit_the_same_with_any_number_of_threads(shape):
    arguments = case(*shape)
    expected = results(linear_scan, arguments)
    for number in (1, 3, 7):
        with num_threads(number):
            for one, same in zip(results(linear_scan, arguments), expected, strict=True):
                assert torch.equal(one, same)


@needs_kernels
def test_the_compiled_scan_refuses_a_second_derivative():
    decay, update, resets, state = case(2, 5, 3)
    hidden = linear_scan(decay, update, resets, state)
    with pytest.raises(RuntimeError, match="no second derivative: set kernels=torch"):
        torch.autograd.grad(hidden.square().sum(), decay, create_graph=True)


def test_tensors_may_be_views(way):
    decay, update, resets, state = case(3, 8, 10)
    views = (decay.mT.contiguous().mT, update.mT.contiguous().mT, resets.T.contiguous().T)
    found = linear_scan(*views, state)
    assert torch.equal(found, linear_scan(decay, update, resets, state))
