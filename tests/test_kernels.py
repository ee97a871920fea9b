"""The compiled kernels against PyTorch's own operators, and what happens where there are none."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from lmkit import kernels
from lmkit.dropout import dropout, masked
from lmkit.embedding import Embedding
from lmkit.head import FullSoftmax
from lmkit.lstm import CompiledLSTM
from lmkit.recurrent import LSTMLayer

pytestmark = pytest.mark.skipif(kernels.load()[0] is None, reason=kernels.load()[1])
BF16 = kernels.compiled(torch.device("cpu"), torch.bfloat16)
DTYPES = [torch.float32, *([torch.bfloat16] if BF16 else [])]


def layer_case(lanes, time, size, hidden_size, seed=0):
    torch.manual_seed(seed)
    layer = LSTMLayer(size, hidden_size)
    inputs = torch.randn(lanes, time, size, requires_grad=True)
    state = tuple(torch.randn(lanes, hidden_size, requires_grad=True) for _ in range(2))
    resets = torch.rand(lanes, time) < 0.2
    return layer, inputs, resets, state


def results(layer, inputs, resets, state, compiled, dtype=torch.float32):
    """Outputs and final state, and the gradients of a random mixture of them all."""
    layer.fewest_positions = 1
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
def test_lstm_is_the_same_with_any_number_of_threads(dtype):
    """Lanes and units are divided, sums are not, but for that of the bias over lanes."""
    case = layer_case(13, 9, 30, 45)
    before = torch.get_num_threads()
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found.append(results(*case, compiled=True, dtype=dtype))
    torch.set_num_threads(before)
    for other in found[1:]:
        assert torch.equal(found[0][0], other[0])
        for one, two in zip(found[0], other, strict=True):
            torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-5)


def test_lstm_backward_again_after_retain_graph_and_never_twice_over():
    layer, inputs, resets, state = layer_case(4, 6, 5, 7)
    layer.fewest_positions = 1
    total = layer(inputs, resets, state)[0].square().sum()
    first, second = (torch.autograd.grad(total, [inputs], retain_graph=True) for _ in range(2))
    assert torch.equal(first[0], second[0])
    with pytest.raises(RuntimeError, match="no second derivative: set kernels=torch"):
        torch.autograd.grad(total, [inputs], create_graph=True)


def test_lstm_notices_a_weight_changed_before_backward():
    layer, inputs, resets, state = layer_case(4, 6, 5, 7)
    layer.fewest_positions = 1
    hidden, _ = layer(inputs, resets, state)
    with torch.no_grad():
        layer.weight_hh.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        hidden.sum().backward()


def test_lstm_of_few_positions_or_other_types_is_left_to_pytorch(monkeypatch):
    monkeypatch.setattr(CompiledLSTM, "apply", lambda *_: pytest.fail("compiled"))
    layer, inputs, resets, state = layer_case(4, 6, 5, 7)
    layer(inputs, resets, state)
    layer.fewest_positions = 1
    layer.double()(inputs.double(), resets, tuple(s.double() for s in state))


def cross_entropy(logits, bias, targets, weight, dtype):
    """nll and the gradients of their weighted sum, by the kernel and by PyTorch in fp32."""
    given = logits.to(dtype)
    exact = given.float().requires_grad_()
    offset = torch.zeros(logits.shape[1]) if bias is None else bias
    offset = offset.clone().requires_grad_()
    nll = F.cross_entropy(exact + offset, targets, reduction="none")
    (nll * weight).sum().backward()
    grad_bias = None if bias is None else torch.zeros_like(bias)
    found = kernels.cross_entropy(given, bias, targets, weight, grad=True, grad_bias=grad_bias)
    return (found, given.float(), grad_bias), (nll.detach(), exact.grad, offset.grad)


@pytest.mark.parametrize("dtype", DTYPES)
@given(st.integers(1, 12), st.integers(2, 70), st.booleans(), st.sampled_from([1.0, 30.0, 1e4]))
@settings(max_examples=40)
def test_cross_entropy_is_that_of_pytorch(dtype, rows, size, biased, scale):
    torch.manual_seed(rows * size)
    logits, bias = scale * torch.randn(rows, size), torch.randn(size) if biased else None
    targets, weight = torch.randint(size, (rows,)), torch.rand(rows)
    weight[::3] = 0
    found, expected = cross_entropy(logits, bias, targets, weight, dtype)
    counts = weight > 0
    torch.testing.assert_close(found[0][counts], expected[0][counts], atol=2e-6, rtol=2e-6)
    assert (found[0][~counts] == 0).all()
    atol = 1e-6 if dtype == torch.float32 else 4e-3
    torch.testing.assert_close(found[1], expected[1], atol=atol, rtol=0)
    if biased:
        torch.testing.assert_close(found[2], expected[2], atol=2e-6, rtol=1e-5)


def test_cross_entropy_without_gradients_leaves_the_logits():
    logits, targets = torch.randn(5, 21), torch.randint(21, (5,))
    before = logits.clone()
    nll = kernels.cross_entropy(logits, None, targets, torch.ones(5), grad=False)
    torch.testing.assert_close(nll, F.cross_entropy(before, targets, reduction="none"))
    assert torch.equal(logits, before)


@pytest.mark.parametrize("target", [-1, 40])
def test_cross_entropy_refuses_a_target_that_there_is_no_logit_of(target):
    targets = torch.tensor([3, target])
    with pytest.raises(IndexError, match="there are 40 logits"):
        kernels.cross_entropy(torch.randn(2, 40), None, targets, torch.ones(2), grad=True)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_cross_entropy_shows_what_is_not_finite(bad):
    """So that a run which has diverged is seen to have."""
    logits = torch.randn(2, 40)
    logits[0, 7] = bad
    nll = kernels.cross_entropy(logits, None, torch.tensor([1, 1]), torch.ones(2), grad=True)
    assert not torch.isfinite(nll[0])
    assert torch.isfinite(nll[1])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1,), (3, 5, 7), (16, 64), (1000, 33)])
@pytest.mark.parametrize("key", [(0, 0), (12345, 2**32 - 1), (2**31, 2**31 - 1)])
def test_dropout_is_the_same_bit_for_bit_without_kernels(dtype, shape, key):
    torch.manual_seed(0)
    tensor = torch.randn(shape, dtype=dtype)
    arguments = (tensor, key, round(0.3 * 2**32), 1 / 0.7)
    assert torch.equal(kernels.dropout(*arguments), masked(*arguments))


def test_dropout_drops_the_share_it_says_independently_of_key_and_place():
    ones = torch.ones(400, 500)
    torch.manual_seed(0)
    share = torch.stack([dropout(ones, 0.2, training=True) > 0 for _ in range(50)]).float()
    assert abs(float(share.mean()) - 0.8) < 5e-4  # 4 standard errors
    assert float((share.mean(0) - 0.8).std()) == pytest.approx((0.16 / 50) ** 0.5, rel=0.02)
    pairs = (share[:-1] - 0.8) * (share[1:] - 0.8), (share[..., 1:] - 0.8) * (share[..., :-1] - 0.8)
    for products in pairs:
        assert abs(float(products.mean())) < 4 * 0.16 / products.numel() ** 0.5


@pytest.mark.parametrize("choice", ["compiled", "torch"])
def test_dropout_has_the_mask_of_forward_in_backward(choice):
    torch.manual_seed(0)
    tensor = torch.randn(8, 9, requires_grad=True)
    with kernels.use(choice):
        dropped = dropout(tensor, 0.5, training=True)
        (grad,) = torch.autograd.grad(dropped.sum(), [tensor], create_graph=True)
    assert torch.equal(grad != 0, dropped != 0)
    assert torch.equal(grad[grad != 0], torch.full_like(grad[grad != 0], 2.0))
    assert dropout(tensor, 0.5, training=False) is tensor
    assert dropout(tensor, 0.0, training=True) is tensor
    assert not dropout(tensor, 1.0, training=True).any()


def test_dropout_draws_its_key_from_the_generator():
    tensor = torch.ones(100)
    torch.manual_seed(3)
    first, second = (dropout(tensor, 0.5, training=True) for _ in range(2))
    torch.manual_seed(3)
    assert torch.equal(first, dropout(tensor, 0.5, training=True))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("choice", ["compiled", "torch"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_head_is_the_same_either_way(choice, dtype):
    torch.manual_seed(0)
    head = FullSoftmax(12, 301, chunk_size=17)
    hidden = torch.randn(4, 13, 12, dtype=dtype, requires_grad=True)
    targets, weight = torch.randint(301, (4, 13)), torch.rand(4, 13)
    mixed = torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16)
    with kernels.use(choice), mixed:
        loss = head.loss(hidden, targets, weight)
        grads = torch.autograd.grad(loss, [hidden, *head.parameters()])
        with torch.no_grad():
            nll = head.nll(hidden, targets)
    logits = F.linear(hidden.float(), head.weight, head.bias)
    expected = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    expected_loss = (expected * weight.flatten()).sum()
    plain = torch.autograd.grad(expected_loss, [hidden, *head.parameters()])
    rtol = 1e-5 if dtype == torch.float32 else 1e-2
    torch.testing.assert_close(loss, expected_loss, rtol=rtol, atol=1e-5)
    torch.testing.assert_close(nll.flatten(), expected, rtol=rtol, atol=5e-3)
    for one, other in zip(grads, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=rtol, atol=1e-5 if rtol < 1e-3 else 3e-2)


def test_shared_embedding_sums_both_gradients_also_again_and_alone():
    torch.manual_seed(0)
    embedding = Embedding(9, 4, init_range=1.0, tied=True)
    head = FullSoftmax(4, 9, embedding)
    tokens, targets, weight = torch.randint(9, (2, 5)), torch.randint(9, (2, 5)), torch.rand(2, 5)

    def loss():
        return head.loss(embedding(tokens).tanh(), targets, weight)

    hidden = F.embedding(tokens, embedding.weight).tanh()
    nll = F.cross_entropy(
        F.linear(hidden, head.weight, head.bias).transpose(1, 2), targets, reduction="none"
    )
    (expected,) = torch.autograd.grad((nll * weight).sum(), [embedding.weight])
    one = loss()
    one.backward(retain_graph=True)
    torch.testing.assert_close(embedding.weight.grad, expected)
    one.backward()
    loss().backward()  # as in accumulation
    torch.testing.assert_close(embedding.weight.grad, 3 * expected)
    embedding.weight.grad = None
    with torch.no_grad():
        embedding(tokens)  # a look-up that no loss follows
    (loss() + loss()).backward()
    torch.testing.assert_close(embedding.weight.grad, 2 * expected)
    embedding.weight.grad = None
    embedding(tokens).sum().backward()
    assert embedding.weight.grad.to_dense().sum() == tokens.numel() * 4


def test_without_a_compiler_it_says_so_and_goes_on(monkeypatch, tmp_path):
    code = (
        "from lmkit import kernels; import torch; print(kernels.load());"
        "print(kernels.compiled(torch.device('cpu'), torch.float32), kernels.choice('cpu'))"
    )
    failing = tmp_path / "cc"
    failing.write_text("#!/bin/sh\n[ $1 = --version ] && exit 0\necho no such flag >&2\nexit 1\n")
    failing.chmod(0o755)
    for compiler, reason in (("/nonexistent", "No such file"), (str(failing), "no such flag")):
        environment = {**os.environ, "CC": compiler, "XDG_CACHE_HOME": str(tmp_path / "cache")}
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            env=environment,
            check=True,
        )
        assert reason in done.stdout
        assert done.stdout.endswith("False torch\n")
        assert not list(Path(tmp_path).glob("cache/lmkit/*"))


def test_the_library_is_built_once_also_by_processes_at_the_same_time(tmp_path):
    code = "from lmkit import kernels; print(kernels.load()[1])"
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    started = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment)
        for _ in range(3)
    ]
    paths = {process.communicate()[0] for process in started}
    assert len(paths) == 1
    (library,) = (tmp_path / "lmkit").iterdir()
    assert paths == {f"{library}\n".encode()}


def test_an_unwritable_cache_is_done_without(tmp_path):
    blocked = tmp_path / "file"
    blocked.touch()
    code = "from lmkit import kernels; print(kernels.load()[0] is not None)"
    environment = {**os.environ, "XDG_CACHE_HOME": str(blocked), "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
    )
    assert done.stdout == "True\n"


def test_there_is_one_openmp_library_in_the_process():
    """A second one would have threads of its own, which fight PyTorch's for the cores."""
    kernels.load()
    lines = Path("/proc/self/maps").read_text().splitlines()
    assert len({line.partition("/")[2] for line in lines if "libgomp" in line}) == 1


def test_kernels_work_in_another_thread():
    case = layer_case(4, 6, 5, 7)
    expected = results(*case, compiled=True)
    found = []
    thread = threading.Thread(target=lambda: found.extend(results(*case, compiled=True)))
    thread.start()
    thread.join()
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)
