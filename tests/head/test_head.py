"""The fused loss against plain PyTorch, forward and backward."""

import pytest
import torch
import torch.nn.functional as F
from compiled import num_threads
from torch import nn

from lmkit import kernels
from lmkit.head import FullSoftmax, Head
from lmkit.model import Embedding


def plain_loss(head, hidden, targets, weight):
    logits = F.linear(hidden, head.weight, head.bias)
    nll = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    return (nll * weight.flatten()).sum()


def case(vocabulary=37, size=10, batch=3, time=7, **kwargs):
    torch.manual_seed(0)
    head = FullSoftmax(size, vocabulary, **kwargs)
    if head.bias is not None:
        nn.init.normal_(head.bias)
    hidden = torch.randn(batch, time, size, requires_grad=True)
    targets = torch.randint(vocabulary, (batch, time))
    weight = torch.rand(batch, time) * (torch.rand(batch, time) > 0.3)
    return head, hidden, targets, weight


def gradients(loss, head, hidden):
    inputs = [hidden, *head.parameters()]
    return torch.autograd.grad(loss, inputs)


@pytest.mark.parametrize("chunk_size", [1, 4, 21, 100, None])
@pytest.mark.parametrize("bias", [True, False])
def test_fused_equals_plain(chunk_size, bias):
    head, hidden, targets, weight = case(chunk_size=chunk_size, bias=bias)
    fused = head.loss(hidden, targets, weight).loss
    plain = plain_loss(head, hidden, targets, weight)
    torch.testing.assert_close(fused, plain)
    for one, other in zip(
        gradients(3 * fused, head, hidden), gradients(3 * plain, head, hidden), strict=True
    ):
        torch.testing.assert_close(one, other)


def test_bf16_stays_near_fp32():
    head, hidden, targets, weight = case(size=64)
    exact = head.loss(hidden, targets, weight).loss
    expected = gradients(exact, head, hidden)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        fused = head.loss(hidden, targets, weight).loss
    torch.testing.assert_close(fused, exact, rtol=1e-2, atol=1e-2)
    for one, other in zip(gradients(fused, head, hidden), expected, strict=True):
        assert one.dtype == other.dtype
        assert F.cosine_similarity(one.flatten(), other.flatten(), dim=0) > 0.999


def test_nll_and_log_prob_agree_with_the_loss():
    head, hidden, targets, weight = case(chunk_size=4)
    nll = head.nll(hidden, targets)
    loss = head.loss(hidden, targets, weight)
    torch.testing.assert_close((nll * weight).sum(), loss.loss)
    torch.testing.assert_close(nll[weight != 0].double().sum(), loss.nll)
    assert not loss.nll.requires_grad
    chunks = list(head.log_prob(hidden))
    assert max(map(len, chunks)) == 4
    log_prob = torch.cat(chunks)
    torch.testing.assert_close(log_prob.exp().sum(1), torch.ones(targets.numel()))
    torch.testing.assert_close(-log_prob.gather(1, targets.flatten()[:, None])[:, 0], nll.flatten())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("choice", ["compiled", "torch"])
@pytest.mark.parametrize("bias", [True, False])
def test_several_targets_at_a_position_are_those_one_by_one(choice, dtype, bias):
    head, hidden, *_ = case(bias=bias)
    hidden = hidden.detach().flatten(0, 1)
    positions = torch.tensor([0, 2, 2, 2, 5, 20, 20])  # some have none
    targets = torch.tensor([3, 36, 0, 3, 1, 1, 1])
    mixed = torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16)
    with kernels.use(choice), mixed, torch.no_grad():
        found = head.nll_at(hidden.to(dtype), positions, targets)
        plain = Head.nll_at(head, hidden.to(dtype), positions, targets)
        none = head.nll_at(hidden.to(dtype), positions[:0], targets[:0])
    assert (found.dtype, none.shape) == (torch.float32, (0,))
    tolerance = 1e-5 if dtype == torch.float32 else 3e-2
    torch.testing.assert_close(found, plain.float(), rtol=tolerance, atol=tolerance)
    logits = F.linear(hidden[2].to(dtype).float(), head.weight.to(dtype).float(), head.bias)
    expected = logits[targets[1]] - logits[targets[2:4]]  # which no normaliser has rounded
    torch.testing.assert_close(found[2:4] - found[1], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("choice", ["compiled", "torch"])
def test_memory_that_a_loss_without_gradients_leaves_serves_the_next_one(choice):
    head, hidden, targets, weight = case()
    with kernels.use(choice):
        with torch.inference_mode():
            head.loss(hidden, targets, weight)
        loss = head.loss(hidden, targets, weight).loss
    expected = gradients(plain_loss(head, hidden, targets, weight), head, hidden)
    for one, other in zip(gradients(loss, head, hidden), expected, strict=True):
        torch.testing.assert_close(one, other)


def test_masked_positions_are_never_read():
    head, hidden, targets, weight = case()
    spoilt = hidden.detach().clone()
    spoilt[weight == 0] = 1e4
    torch.testing.assert_close(
        head.loss(hidden, targets, weight).loss, head.loss(spoilt, targets, weight).loss
    )


def test_gradient_accumulation_and_retained_graphs():
    head, hidden, targets, weight = case()
    expected = gradients(plain_loss(head, hidden, targets, weight), head, hidden)
    loss = head.loss(hidden, targets, weight).loss
    loss.backward(retain_graph=True)
    loss.backward()
    torch.testing.assert_close(head.weight.grad, 2 * expected[1])
    head.weight.grad.zero_()
    loss = head.loss(hidden, targets, weight).loss
    loss.backward(retain_graph=True)
    head.weight.grad.mul_(100)  # as clipping does; what backward keeps must not be this tensor
    head.weight.grad.zero_()
    loss.backward()
    torch.testing.assert_close(head.weight.grad, expected[1])


def test_tied_weight_gets_both_gradients():
    torch.manual_seed(0)
    embedding = Embedding(11, 6, init_range=0.1, tied=True)
    head = FullSoftmax(6, 11, embedding)
    assert head.weight is embedding.weight
    tokens, targets = torch.randint(11, (2, 2, 5))
    weight = torch.rand(2, 5)
    (fused,) = torch.autograd.grad(
        head.loss(embedding(tokens).tanh(), targets, weight).loss, [embedding.weight]
    )
    (plain,) = torch.autograd.grad(
        plain_loss(head, embedding(tokens).tanh(), targets, weight), [embedding.weight]
    )
    torch.testing.assert_close(fused, plain)


def test_differentiating_twice_is_refused():
    head, hidden, targets, weight = case()
    with pytest.raises(RuntimeError, match="has no second derivative"):
        torch.autograd.grad(head.loss(hidden, targets, weight).loss, [hidden], create_graph=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_target_of_vanishing_probability_has_its_nll(dtype):
    head, hidden, targets, weight = case(chunk_size=4)
    hidden = (1000 * hidden).detach()
    with torch.no_grad(), torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        expected = plain_loss(head, hidden, targets, weight)
        assert (head.nll(hidden, targets) > 200).any(), "else its probability is a number"
        torch.testing.assert_close(
            head.loss(hidden, targets, weight).loss, expected, rtol=0.01, atol=0
        )


def test_weights_far_below_half_precision_scale_loss_and_gradient():
    head, hidden, targets, weight = case(size=64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = [head.loss(hidden, targets, weight * scale).loss for scale in (1.0, 2.0**-100)]
    large, small = (gradients(loss, head, hidden) for loss in losses)
    assert losses[1] == losses[0] * 2.0**-100
    for one, other in zip(small, large, strict=True):
        torch.testing.assert_close(one * 2.0**100, other)


def test_the_fused_loss_without_gradients_is_the_same_number():
    head, hidden, targets, weight = case(chunk_size=4)
    with torch.no_grad():
        alone = head.loss(hidden, targets, weight).loss
    assert alone == head.loss(hidden, targets, weight).loss


@pytest.mark.parametrize("choice", ["compiled", "torch"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_head_is_the_same_either_way(choice, dtype):
    torch.manual_seed(0)
    head = FullSoftmax(12, 301, chunk_size=17)
    hidden = torch.randn(4, 13, 12, dtype=dtype, requires_grad=True)
    targets, weight = torch.randint(301, (4, 13)), torch.rand(4, 13)
    mixed = torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16)
    with kernels.use(choice), mixed:
        loss = head.loss(hidden, targets, weight).loss
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


def test_the_sum_of_many_losses_is_bit_for_bit_the_same_with_any_number_of_threads():
    head, hidden, targets, weight = case(vocabulary=5, size=3, batch=100, time=700)
    losses = []
    for number in (1, 2, 5):
        with num_threads(number):
            losses.append(float(head.loss(hidden, targets, weight).loss.detach()))
    assert len(set(losses)) == 1
