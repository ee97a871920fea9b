"""What cuDNN and a GPU must do as the CPU does; skipped where there is none."""

import pytest
import torch

from lmkit.head import FullSoftmax
from lmkit.model.dropout import Masks, dropout
from lmkit.model.elman import ElmanLayer
from lmkit.model.gru import GRULayer
from lmkit.model.lstm import LSTMLayer

DEVICE = "cuda"
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")

PRECISIONS = {
    "fp32": (torch.float32, 1e-5),
    "tf32": (torch.float32, 2e-3),
    "fp16": (torch.float16, 2e-3),
    "bf16": (torch.bfloat16, 2e-2),
}


@pytest.fixture(params=PRECISIONS)
def precision(request):
    """Type of the products and the error that rounding in it makes."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=request.param == "tf32"):
        yield PRECISIONS[request.param]


def outputs(layer, inputs, resets, dtype):
    state = layer.initial_state(len(inputs))
    with torch.autocast(DEVICE, dtype, enabled=dtype != torch.float32):
        hidden, _ = layer(inputs, resets, state)
    return hidden.float()


@pytest.mark.parametrize("kind", [LSTMLayer, GRULayer, ElmanLayer])
def test_a_reset_within_a_window_is_exact_forward_and_backward(kind, precision):
    """A document after a reset reads as if alone, and not a bit goes across, in any precision."""
    dtype, tolerance = precision
    torch.manual_seed(0)
    layer = kind(24, 40).to(DEVICE)
    inputs = torch.randn(5, 30, 24, device=DEVICE, requires_grad=True)
    resets = torch.zeros(5, 30, dtype=torch.bool, device=DEVICE)
    resets[:, 11] = True
    hidden = outputs(layer, inputs, resets, dtype)
    after = hidden[:, 12:]
    alone = outputs(layer, inputs[:, 12:], resets[:, 12:], dtype)
    torch.testing.assert_close(after, alone, atol=tolerance, rtol=0)
    (grad,) = torch.autograd.grad(after.sum(), inputs, retain_graph=True)
    assert (grad[:, :11] == 0).all()
    assert (grad[:, 12:] != 0).any()
    changed = inputs.detach().clone()
    changed[:, :11] += 1
    assert torch.equal(outputs(layer, changed, resets, dtype)[:, 12:], after)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_fused_loss_is_that_of_the_cpu(dtype):
    torch.manual_seed(0)
    head = FullSoftmax(40, 301, chunk_size=17)
    hidden, weight = torch.randn(4, 13, 40), torch.rand(4, 13) / 52
    targets = torch.randint(301, (4, 13))
    found = []
    for device in ("cpu", DEVICE):
        here = head.to(device)
        rows = hidden.to(device).requires_grad_()
        low = dtype != torch.float32 and device == DEVICE
        with torch.autocast(device, dtype, enabled=low):
            loss = here.loss(rows, targets.to(device), weight.to(device)).loss
        grads = torch.autograd.grad(loss, [rows, *here.parameters()])
        found.append([loss.detach().cpu(), *(grad.float().cpu() for grad in grads)])
    for one, other in zip(*found, strict=True):
        error = (one - other).norm() / one.norm()
        assert error < (1e-5 if dtype == torch.float32 else 2e-2)


@pytest.mark.parametrize("shared", [(), (1,)])
def test_masks_are_those_of_all_lanes_cut_to_the_process(shared):
    tensor = torch.ones(6, 5, 40, device=DEVICE)

    def masked(first, rows):
        with Masks(5, 2, 9, first, 6).use():
            return dropout(rows, 0.5, True, "a", shared)

    shares = [masked(first, tensor[first : first + 2]) for first in (0, 2, 4)]
    whole = masked(0, tensor)
    assert torch.equal(torch.cat(shares), whole)
    assert torch.equal(whole, whole[:, :1].expand_as(whole)) == bool(shared)
