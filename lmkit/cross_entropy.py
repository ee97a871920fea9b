"""The fused product and cross-entropy: a loss whose gradients are made with it, by chunks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lmkit import kernels
from lmkit.gemm import fast_matmul, product_dtype

# In low precision the gradient of the matrix is made in parts of this many, summed in fp32.
PRODUCT_AT_ONCE = 2**21


class Memory:
    """What one loss leaves to the next, so that no step waits for fresh pages."""

    def __init__(self) -> None:
        self.gradient: Tensor | None = None
        self._scratch: dict[str, Tensor] = {}

    def scratch(self, name: str, like: Tensor, rows: int, columns: int) -> Tensor:
        """Uninitialised (rows, columns), of which there is one of a name at a time."""
        there = self._scratch.get(name)
        fits = there is not None and (there.dtype, there.device) == (like.dtype, like.device)
        if there is None or not fits or there.numel() < rows * columns:
            self._scratch.pop(name, None)
            there = self._scratch[name] = like.new_empty(rows * columns)
        return there[: rows * columns].view(rows, columns)

    def gradient_of(self, weight: Tensor) -> Tensor:
        """Uninitialised, as large as weight, and the caller's own."""
        there, self.gradient = self.gradient, None
        if there is None or (there.shape, there.device) != (weight.shape, weight.device):
            return torch.empty_like(weight)
        return there


class LinearCrossEntropy(torch.autograd.Function):
    """sum_i weight_i * CE(U h_i + b, target_i), its gradients made in forward, by chunks of rows.

    Backward multiplies them by one number and hands them over; after `retain_graph` a second
    backward makes them again.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        row_weight: Tensor,
        chunk_size: int,
        memory: Memory,
    ) -> Tensor:
        """hidden (rows, hidden_size), weight (vocabulary, hidden_size), bias (vocabulary),
        targets and row_weight (rows) -> scalar float32."""
        dtype = product_dtype(weight)
        scale = None
        if dtype == torch.float16:  # 1 / tokens is too small for it: rows are weighted up to 1
            scale = row_weight.max().clamp_min(torch.finfo(torch.float32).tiny)
            row_weight = row_weight / scale
        tensors = (hidden, weight, bias, targets, row_weight)
        ctx.save_for_backward(*tensors, scale)
        ctx.settings = (chunk_size, dtype, memory, any(ctx.needs_input_grad[:3]))
        nll, ctx.gradients = nll_and_gradients(*tensors, *ctx.settings)
        loss = (nll * row_weight).sum()
        return loss if scale is None else loss * scale

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # only under create_graph=True
            raise RuntimeError(
                "the fused loss made its gradients in forward and has no second derivative: "
                "use head.nll, which autograd can differentiate twice"
            )
        *tensors, scale = ctx.saved_tensors
        gradients, ctx.gradients = ctx.gradients, None  # who gets them may write into them
        if gradients is None:
            _, gradients = nll_and_gradients(*tensors, *ctx.settings)
        factor = grad_loss if scale is None else grad_loss * scale
        if factor.device.type != "cpu" or factor != 1:  # an accelerator is not waited for
            for gradient in gradients:
                if gradient is not None:
                    gradient.mul_(factor)
        hidden, weight, bias = (
            None if gradient is None else gradient.to(tensor.dtype)
            for gradient, tensor in zip(gradients, tensors[:3], strict=True)
        )
        return hidden, weight, bias, None, None, None, None


Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]


def nll_and_gradients(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    row_weight: Tensor,
    chunk_size: int,
    dtype: torch.dtype,
    memory: Memory,
    needs_grad: bool,
) -> tuple[Tensor, Gradients]:
    """nll (rows), not weighted, and the gradients of the loss by hidden (float32), weight, bias.

    Three GEMMs a chunk: logits, then, from weight * (softmax - one-hot) in place of the logits,
    the gradients of h and U. GEMMs run in `dtype`.
    """
    device = hidden.device
    vocabulary_size, hidden_size = weight.shape
    nll = torch.empty(len(hidden), device=device)
    grad_hidden = torch.empty_like(hidden, dtype=torch.float32) if needs_grad else None
    grad_weight = memory.gradient_of(weight) if needs_grad else None
    grad_bias = torch.zeros_like(bias) if needs_grad and bias is not None else None
    chunk_size = -(-len(hidden) // -(-len(hidden) // chunk_size))  # as equal as can be
    with torch.autocast(device.type, enabled=False), fast_matmul():
        if dtype == weight.dtype:
            inputs, matrix = hidden.to(dtype), weight
        else:
            inputs, matrix = _joined(hidden, weight, bias, dtype, memory)
        joined_bias, sums = (bias, grad_bias) if matrix is weight else (None, None)
        for begin in range(0, len(hidden), chunk_size):
            chunk = slice(begin, begin + chunk_size)
            rows, share = inputs[chunk], row_weight[chunk]
            logits = memory.scratch("logits", inputs, len(rows), vocabulary_size)
            torch.mm(rows, matrix.T, out=logits)
            nll[chunk] = _to_gradient(logits, joined_bias, targets[chunk], share, sums, needs_grad)
            if grad_hidden is None or grad_weight is None:
                continue
            grad_hidden[chunk] = (logits @ matrix)[:, :hidden_size]
            if matrix is weight:
                beta = float(begin > 0)
                torch.addmm(grad_weight, logits.T, rows, beta=beta, out=grad_weight)
                continue
            step = PRODUCT_AT_ONCE // hidden_size if device.type == "cpu" else vocabulary_size
            step = max(step, 1)
            for start in range(0, vocabulary_size, step):
                part = slice(start, start + step)
                some = logits[:, part]
                product = memory.scratch("product", inputs, some.shape[1], matrix.shape[1])
                torch.mm(some.T, rows, out=product)
                if begin:
                    grad_weight[part] += product[:, :hidden_size]
                else:
                    grad_weight[part] = product[:, :hidden_size]
                if grad_bias is not None:
                    grad_bias[part] += product[:, hidden_size]
    return nll, (grad_hidden, grad_weight, grad_bias)


def _joined(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype, memory: Memory
) -> tuple[Tensor, Tensor]:
    """hidden and weight in low precision, with a column of ones and the bias, so that products
    add the bias and sum its gradient; as wide as kernels like, with zeros."""
    size = hidden.shape[1]
    width = kernels.padded(size + 1)
    like = hidden.new_empty(0, dtype=dtype)
    inputs = memory.scratch("inputs", like, len(hidden), width)
    matrix = memory.scratch("matrix", like, len(weight), width)
    inputs[:, :size], matrix[:, :size] = hidden, weight
    inputs[:, size:], matrix[:, size:] = 0, 0
    inputs[:, size] = 1
    if bias is not None:
        matrix[:, size] = bias
    return inputs, matrix


def _to_gradient(
    logits: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    weight: Tensor,
    grad_bias: Tensor | None,
    needs_grad: bool,
) -> Tensor:
    """logits (rows, vocabulary), without bias, become the gradient of weight * nll, summed into
    grad_bias; nll float32 (rows)."""
    if kernels.compiled(logits.device, logits.dtype):
        return kernels.cross_entropy(
            logits, bias, targets, weight, grad=needs_grad, grad_bias=grad_bias
        )
    if bias is not None:
        logits += bias.to(logits.dtype)
    targets, share = targets[:, None], weight[:, None]
    highest, wanted = logits.amax(1, keepdim=True).float(), logits.gather(1, targets).float()
    grad = torch.softmax(logits, dim=1, out=logits)
    # The highest probability cannot underflow, as that of the target can.
    nll = highest - wanted - grad.amax(1, keepdim=True).float().log()
    grad.scatter_(1, targets, grad.gather(1, targets) - 1)
    grad *= share.to(grad.dtype)
    if grad_bias is not None:
        grad_bias += grad.sum(0, dtype=torch.float32)
    return nll[:, 0]
