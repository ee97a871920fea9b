"""The fused product and cross-entropy: forward computes the gradients too, chunk by chunk."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lmkit.head.made_in_forward import hand_out, make
from lmkit.kernels import padded, softmax
from lmkit.kernels.matmul import fast_matmul, product_dtype
from lmkit.kernels.order import any_order


class Memory:
    """Buffers that one loss leaves to the next, so that no step waits for fresh pages.

    beside: another memory whose scratch this one shares, as their losses are computed in turn.
    """

    def __init__(self, beside: Memory | None = None) -> None:
        self.gradient: Tensor | None = None
        self._scratch: dict[str, Tensor] = {} if beside is None else beside._scratch

    def scratch(self, name: str, like: Tensor, rows: int, columns: int) -> Tensor:
        """An uninitialised (rows, columns) tensor; the next of that name may use its memory."""
        buffer = self._scratch.get(name)
        fits = buffer is not None and (buffer.dtype, buffer.device) == (like.dtype, like.device)
        if buffer is None or not fits or buffer.numel() < rows * columns:
            self._scratch.pop(name, None)
            with torch.inference_mode(False):  # or only inference could write into it later
                buffer = self._scratch[name] = like.new_empty(rows * columns)
        return buffer[: rows * columns].view(rows, columns)

    def gradient_of(self, weight: Tensor) -> Tensor:
        """An uninitialised tensor as large as weight, which the caller may keep."""
        buffer, self.gradient = self.gradient, None
        if buffer is None or (buffer.shape, buffer.device) != (weight.shape, weight.device):
            return torch.empty_like(weight)
        return buffer


class Terms(NamedTuple):
    """The arguments of the loss sum_i weight_i * CE(U h_i + b, target_i).

    With `log_prior` each run of `num_experts` rows are the experts of one position, which has one
    target and weight, and the loss is that of their mixture (Yang et al. 2018, equation 4):
    sum_n -weight_n * log sum_k exp(log_prior_nk - CE_nk).
    """

    hidden: Tensor  # (rows, hidden_size)
    matrix: Tensor  # U, (vocabulary, hidden_size)
    bias: Tensor | None  # (vocabulary)
    targets: Tensor  # int64 (rows)
    weight: Tensor  # float32 (rows)
    log_prior: Tensor | None = None  # float32 (rows)
    num_experts: int = 1

    def share(self, rows: Tensor | slice, nll: Tensor) -> Tensor:
        """The derivative of the loss by the nll (n) of some rows, all experts of some positions:
        their weight, times the expert's probability given the target."""
        weight = self.weight[rows]
        if self.log_prior is None:
            return weight
        joint = (self.log_prior[rows] - nll).view(-1, self.num_experts)
        return weight * joint.softmax(1).flatten()


class Gradients(NamedTuple):
    """The gradients of the loss by the terms of these names; all None where none is needed."""

    hidden: Tensor | None  # float32
    matrix: Tensor | None
    bias: Tensor | None


class LinearCrossEntropy(torch.autograd.Function):
    """The loss of `Terms`, whose gradients forward computes too, by chunks of rows."""

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
        """`Terms` -> the loss and the sum of nll, as `made_in_forward.make` has them."""
        dtype = product_dtype(matrix)
        settings = (chunk_size, dtype, memory, any(ctx.needs_input_grad[:3]))

        def compute(*tensors: Any) -> tuple[Tensor, Gradients]:
            return nll_and_gradients(Terms(*tensors), *settings)

        return make(ctx, compute, (hidden, matrix, bias, targets), weight, dtype)

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
        return hand_out(ctx, grad_loss, 7)


def nll_and_gradients(
    terms: Terms, chunk_size: int, dtype: torch.dtype, memory: Memory, needs_grad: bool
) -> tuple[Tensor, Gradients]:
    """Unweighted nll (rows) and the gradients of the loss; products are computed in `dtype`."""
    gradients = Gradients(None, None, None)
    if needs_grad:
        gradients = Gradients(
            torch.empty_like(terms.hidden, dtype=torch.float32),
            memory.gradient_of(terms.matrix),
            None if terms.bias is None else torch.zeros_like(terms.bias),
        )
        if gradients.matrix is not None and not len(terms.hidden):
            gradients.matrix.zero_()
    compute = _by_odds if softmax.compiled(terms.matrix, dtype) else _by_logits
    with torch.autocast(terms.hidden.device.type, enabled=False), fast_matmul():
        return compute(terms, gradients, chunk_size, dtype, memory), gradients


def _by_odds(
    terms: Terms, gradients: Gradients, chunk_size: int, dtype: torch.dtype, memory: Memory
) -> Tensor:
    """Return the nll and fill in the gradients, on compiled kernels."""
    matrix, bias = terms.matrix, terms.bias
    counts = (terms.weight != 0).nonzero()[:, 0]  # rows that count; the others are not read
    every = len(counts) == len(terms.weight)
    hidden, targets = (
        tensor if every else tensor[counts] for tensor in (terms.hidden, terms.targets)
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
    for chunk in _chunks(len(counts), chunk_size, terms.num_experts):
        rows, target, place = hidden[chunk], targets[chunk], counts[chunk]
        odds = memory.scratch("odds", hidden, 1, softmax.num_odds(len(rows), len(matrix)))
        nll[place], total = softmax.nll_and_odds(rows, matrix, bias, target, odds)
        into, share = (gradients.matrix, gradients.bias), terms.share(place, nll[place])
        gradients.hidden[place] = softmax.gradients(
            rows, matrix, target, share, total, odds, *into, add=chunk.start > 0
        )
    return nll


def _by_logits(
    terms: Terms, gradients: Gradients, chunk_size: int, dtype: torch.dtype, memory: Memory
) -> Tensor:
    """Return the nll and fill in the gradients, by PyTorch's operators: the logits become weight *
    (softmax - one-hot) in their own memory, and from this come the gradients of h and U."""
    vocabulary_size, hidden_size = terms.matrix.shape
    nll = torch.empty_like(terms.weight)
    if dtype == terms.matrix.dtype:
        inputs, matrix = terms.hidden.to(dtype), terms.matrix
        bias, grad_bias = terms.bias, gradients.bias
    else:
        inputs, matrix = _joined(terms.hidden, terms.matrix, terms.bias, dtype, memory)
        bias = grad_bias = None
    for chunk in _chunks(len(inputs), chunk_size, terms.num_experts):
        rows = inputs[chunk]
        logits = memory.scratch("logits", inputs, len(rows), vocabulary_size)
        torch.mm(rows, matrix.T, out=logits)
        share = partial(terms.share, chunk)
        nll[chunk] = _to_gradient(logits, bias, terms.targets[chunk], share, grad_bias)
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


def _chunks(rows: int, chunk_size: int, together: int = 1) -> Iterator[slice]:
    """Slices of 0 to rows, as equal as can be, none longer than chunk_size, of whole runs of
    `together` rows, of which there is at least one in each."""
    runs, most = rows // together, max(chunk_size // together, 1)
    size = -(-runs // -(-runs // most)) * together if rows else 1
    return (slice(begin, min(begin + size, rows)) for begin in range(0, rows, size))


def _joined(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype, memory: Memory
) -> tuple[Tensor, Tensor]:
    """hidden with a column of ones and weight with the bias as a column, in low precision: so the
    products add the bias and sum its gradient. Zeros pad both to a width that suits the kernels."""
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
    logits: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    share: Callable[[Tensor], Tensor],
    grad_bias: Tensor | None,
) -> Tensor:
    """Turn logits (rows, vocabulary), without bias, in place into the gradient of the loss, whose
    derivative by the nll is `share`, and add its sum to grad_bias; returns nll, float32 (rows)."""
    if bias is not None:
        logits += bias.to(logits.dtype)
    targets = targets[:, None]
    highest, wanted = logits.amax(1, keepdim=True).float(), logits.gather(1, targets).float()
    grad = torch.softmax(logits, dim=1, out=logits)
    # The highest probability cannot underflow; the target's can.
    nll = highest - wanted - grad.amax(1, keepdim=True).float().log()
    less_one = grad.gather(1, targets) - 1
    with any_order():  # one write in each row: PyTorch would sort the indices on a GPU
        grad.scatter_(1, targets, less_one)
    grad *= share(nll[:, 0])[:, None].to(grad.dtype)
    if grad_bias is not None:
        grad_bias += grad.sum(0, dtype=torch.float32)
    return nll[:, 0]
