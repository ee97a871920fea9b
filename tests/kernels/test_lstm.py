"""The compiled LSTM against PyTorch's."""

import threading

import pytest
import torch
import torch.nn.functional as F
from compiled import BF16, DTYPES, needs_kernels, num_threads
from hypothesis import given, settings
from hypothesis import strategies as st

from lmkit import kernels
from lmkit.kernels.lstm import CompiledLSTM
from lmkit.model.lstm import LSTMLayer

pytestmark = needs_kernels


def layer_case(lanes, time, size, hidden_size, seed=0):
    torch.manual_seed(seed)
    layer = LSTMLayer(size, hidden_size)
    inputs = torch.randn(lanes, time, size, requires_grad=True)
    state = tuple(torch.randn(lanes, hidden_size, requires_grad=True) for _ in range(2))
    resets = torch.rand(lanes, time) < 0.2
    return layer, inputs, resets, state


def results(layer, inputs, resets, state, compiled, dtype=torch.float32):
    """Outputs and final state, and the gradients of a random mixture of them all."""
    with kernels.use("compiled" if compiled else "torch"):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            hidden, after = layer(inputs, resets, state)
        generator = torch.Generator().manual_seed(5)
        loss = (
            hidden.float()
            * torch.randn(hidden.shape, generator=generator)
            * ~resets[..., None]  # what stands at a reset is not meant to be read
        ).sum()
        for tensor in after:
            loss = loss + (tensor.float() * torch.randn(tensor.shape, generator=generator)).sum()
        wanted = [inputs, *state, *layer.parameters()]
        grads = torch.autograd.grad(loss, wanted)
    return [hidden.float().masked_fill(resets[..., None], 0), *(s.float() for s in after), *grads]


@given(st.integers(1, 23), st.integers(1, 9), st.integers(1, 40), st.integers(1, 40))
@settings(max_examples=40)
def test_lstm_is_that_of_pytorch(lanes, time, size, hidden_size):
    case = layer_case(lanes, time, size, hidden_size, seed=lanes)
    pairs = zip(results(*case, compiled=True), results(*case, compiled=False), strict=True)
    for one, other in pairs:
        torch.testing.assert_close(one, other, atol=3e-5, rtol=1e-4)


@pytest.mark.skipif(not BF16, reason="this processor does not multiply bfloat16")
@pytest.mark.parametrize("sizes", [(3, 5, 7, 9), (20, 35, 64, 80), (7, 11, 650, 33)])
def test_lstm_in_bf16_stays_near_fp32(sizes):
    case = layer_case(*sizes)
    pairs = zip(
        results(*case, compiled=True, dtype=torch.bfloat16),
        results(*case, compiled=False),
        strict=True,
    )
    for one, other in pairs:
        assert one.dtype == other.dtype
        assert F.cosine_similarity(one.flatten(), other.flatten(), dim=0) > 0.999


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", [(13, 9, 30, 45), (1, 3, 5, 7), (25, 4, 16, 200)])
def test_lstm_is_bit_for_bit_the_same_with_any_number_of_threads(dtype, sizes):
    case = layer_case(*sizes)
    expected = results(*case, compiled=True, dtype=dtype)
    for number in (1, 3, 7):
        with num_threads(number):
            found = results(*case, compiled=True, dtype=dtype)
        for one, same in zip(expected, found, strict=True):
            assert torch.equal(one, same)


def test_lstm_backward_again_after_retain_graph_and_never_twice_over():
    layer, inputs, resets, state = layer_case(4, 6, 5, 7)
    total = layer(inputs, resets, state)[0].square().sum()
    first, second = (torch.autograd.grad(total, [inputs], retain_graph=True) for _ in range(2))
    assert torch.equal(first[0], second[0])
    with pytest.raises(RuntimeError, match="no second derivative: set kernels=torch"):
        torch.autograd.grad(total, [inputs], create_graph=True)


def test_lstm_notices_a_weight_changed_before_backward():
    layer, inputs, resets, state = layer_case(4, 6, 5, 7)
    hidden, _ = layer(inputs, resets, state)
    with torch.no_grad():
        layer.weight_hh.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        hidden.sum().backward()


def test_lstm_of_single_positions_or_other_types_is_left_to_pytorch(monkeypatch):
    monkeypatch.setattr(CompiledLSTM, "apply", lambda *_: pytest.fail("compiled"))
    layer, inputs, resets, state = layer_case(4, 6, 5, 7)
    with torch.no_grad():
        layer(inputs[:, :1], resets[:, :1], state)
    layer.double()(inputs.double(), resets, tuple(s.double() for s in state))


def test_kernels_work_in_another_thread():
    case = layer_case(4, 6, 5, 7)
    expected = results(*case, compiled=True)
    found = []
    thread = threading.Thread(target=lambda: found.extend(results(*case, compiled=True)))
    thread.start()
    thread.join()
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)
