"""The fused product and cross-entropy: a loss whose gradients are made with it, by chunks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lmkit.kernels import padded, softmax
from lmkit.kernels.matmul import fast_matmul, product_dtype


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


class Terms(NamedTuple):
    """What the loss sum_i weight_i * CE(U h_i + b, target_i) is made of."""

    hidden: Tensor  # (rows, hidden_size)
    matrix: Tensor  # U, (vocabulary, hidden_size)
    bias: Tensor | None  # (vocabulary)
    targets: Tensor  # int64 (rows)
    weight: Tensor  # float32 (rows)


class Gradients(NamedTuple):
    """By the terms of that name; all None where none is wanted."""

    hidden: Tensor | None  # float32
    matrix: Tensor | None
    bias: Tensor | None


class LinearCrossEntropy(torch.autograd.Function):
    """The loss of `Terms`, whose gradients are made in forward, by chunks of rows.

    Backward multiplies them by one number and hands them over; after `retain_graph` a second
    backward makes them again.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        matrix: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        weight: Tensor,
        chunk_size: int,
        memory: Memory,
    ) -> tuple[Tensor, Tensor]:
        """`Terms` -> the loss, scalar float32, and the sum of nll where weight is not 0, which has
        no gradient: scalar float64, float32 on a device without."""
        dtype = product_dtype(matrix)
        scale = None
        if dtype == torch.float16:  # 1 / tokens is too small for it: rows are weighted up to 1
            scale = weight.max().clamp_min(torch.finfo(torch.float32).tiny)
            weight = weight / scale
        terms = Terms(hidden, matrix, bias, targets, weight)
        ctx.save_for_backward(*terms, scale)
        ctx.settings = (chunk_size, dtype, memory, any(ctx.needs_input_grad[:3]))
        nll, ctx.gradients = nll_and_gradients(terms, *ctx.settings)
        loss, exact = _sum(nll * weight), torch.float32 if nll.is_mps else torch.float64
        nll_sum = _sum(torch.where(weight != 0, nll, 0.0).to(exact))
        ctx.mark_non_differentiable(nll_sum)
        return loss if scale is None else loss * scale, nll_sum

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # only under create_graph=True
            raise RuntimeError(
                "the fused loss made its gradients in forward and has no second derivative: "
                "use head.nll, which autograd can differentiate twice"
            )
        *tensors, scale = ctx.saved_tensors
        gradients, ctx.gradients = ctx.gradients, None  # who gets them may write into them
        if gradients is None:
            _, gradients = nll_and_gradients(Terms(*tensors), *ctx.settings)
        factor = grad_loss if scale is None else grad_loss * scale
        if factor.device.type != "cpu" or factor != 1:  # an accelerator is not waited for
            for gradient in gradients:
                if gradient is not None:
                    gradient.mul_(factor)
        hidden, matrix, bias = (
            None if gradient is None else gradient.to(tensor.dtype)
            for gradient, tensor in zip(gradients, tensors[:3], strict=True)
        )
        return hidden, matrix, bias, None, None, None, None


def _sum(values: Tensor) -> Tensor:
    """Of (rows); PyTorch divides a longer sum among threads, by their number."""
    return torch.stack([piece.sum() for piece in values.split(2**14)]).sum()


def nll_and_gradients(
    terms: Terms, chunk_size: int, dtype: torch.dtype, memory: Memory, needs_grad: bool
) -> tuple[Tensor, Gradients]:
    """nll (rows), not weighted, and the gradients of the loss; products are in `dtype`."""
    gradients = Gradients(None, None, None)
    if needs_grad:
        gradients = Gradients(
            torch.empty_like(terms.hidden, dtype=torch.float32),
            memory.gradient_of(terms.matrix),
            None if terms.bias is None else torch.zeros_like(terms.bias),
        )
    way = _by_odds if softmax.compiled(terms.matrix, dtype) else _by_logits
    with torch.autocast(terms.hidden.device.type, enabled=False), fast_matmul():
        return way(terms, gradients, chunk_size, dtype, memory), gradients


def _by_odds(
    terms: Terms, gradients: Gradients, chunk_size: int, dtype: torch.dtype, memory: Memory
) -> Tensor:
    """The nll, and the gradients filled, on compiled kernels."""
    matrix, bias = terms.matrix, terms.bias
    counts = (terms.weight != 0).nonzero()[:, 0]  # the others are not read
    every = len(counts) == len(terms.weight)
    hidden, targets, weight = (
        tensor if every else tensor[counts]
        for tensor in (terms.hidden, terms.targets, terms.weight)
    )
    hidden = hidden.to(dtype).contiguous()
    nll = torch.zeros_like(terms.weight)
    if gradients.hidden is None or gradients.matrix is None:
        nll[counts], _ = softmax.nll_and_odds(hidden, matrix, bias, targets, None)
        return nll
    if not every:
        gradients.hidden.zero_()
    if not len(counts):
        gradients.matrix.zero_()
    for chunk in _chunks(len(counts), chunk_size):
        rows, aims, shares = hidden[chunk], targets[chunk], weight[chunk]
        kept = memory.scratch("odds", hidden, 1, softmax.num_odds(len(rows), len(matrix)))
        nll[counts[chunk]], total = softmax.nll_and_odds(rows, matrix, bias, aims, kept)
        into = (gradients.matrix, gradients.bias)
        gradients.hidden[counts[chunk]] = softmax.gradients(
            rows, matrix, aims, shares, total, kept, *into, add=chunk.start > 0
        )
    return nll


def _by_logits(
    terms: Terms, gradients: Gradients, chunk_size: int, dtype: torch.dtype, memory: Memory
) -> Tensor:
    """The nll, and the gradients filled, by PyTorch's operators: logits, then, from weight *
    (softmax - one-hot) in their place, the gradients of h and U."""
    vocabulary_size, hidden_size = terms.matrix.shape
    nll = torch.empty_like(terms.weight)
    if dtype == terms.matrix.dtype:
        inputs, matrix = terms.hidden.to(dtype), terms.matrix
        bias, grad_bias = terms.bias, gradients.bias
    else:
        inputs, matrix = _joined(terms.hidden, terms.matrix, terms.bias, dtype, memory)
        bias = grad_bias = None
    for chunk in _chunks(len(inputs), chunk_size):
        rows = inputs[chunk]
        logits = memory.scratch("logits", inputs, len(rows), vocabulary_size)
        torch.mm(rows, matrix.T, out=logits)
        given = (logits, bias, terms.targets[chunk], terms.weight[chunk])
        nll[chunk] = _to_gradient(*given, grad_bias)
        if gradients.hidden is None or gradients.matrix is None:
            continue
        gradients.hidden[chunk] = (logits @ matrix)[:, :hidden_size]
        if matrix is terms.matrix:
            beta = float(chunk.start > 0)
            torch.addmm(gradients.matrix, logits.T, rows, beta=beta, out=gradients.matrix)
            continue
        product = memory.scratch("product", inputs, vocabulary_size, matrix.shape[1])
        torch.mm(logits.T, rows, out=product)
        if chunk.start:
            gradients.matrix.add_(product[:, :hidden_size])
        else:
            gradients.matrix.copy_(product[:, :hidden_size])
        if gradients.bias is not None:
            gradients.bias.add_(product[:, hidden_size])
    return nll


def _chunks(rows: int, chunk_size: int) -> Iterator[slice]:
    """Slices of 0 to rows, as equal as can be, none longer than chunk_size."""
    size = -(-rows // -(-rows // chunk_size)) if rows else 1
    return (slice(begin, min(begin + size, rows)) for begin in range(0, rows, size))


def _joined(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype, memory: Memory
) -> tuple[Tensor, Tensor]:
    """hidden and weight in low precision, with a column of ones and the bias, so that products
    add the bias and sum its gradient; as wide as kernels like, with zeros."""
    size = hidden.shape[1]
    width = padded(size + 1)
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
    logits: Tensor, bias: Tensor | None, targets: Tensor, weight: Tensor, grad_bias: Tensor | None
) -> Tensor:
    """logits (rows, vocabulary), without bias, become the gradient of weight * nll, summed into
    grad_bias; nll float32 (rows)."""
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
