"""From hidden vectors to per-token negative log-likelihood, never holding all the logits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmkit import kernels
from lmkit.embedding import Embedding
from lmkit.gemm import fast_matmul

# Without `chunk_size`, at least as many rows at a time as make this many logits.
LOGITS_AT_ONCE = 2**22
# In low precision the gradient of the matrix is made in parts of this many, summed in fp32.
PRODUCT_AT_ONCE = 2**21
ALIGNMENT = 16  # elements


class Head(nn.Module):
    """The interface that training, evaluation and scoring go by.

    hidden is (batch, time, hidden_size); targets is int64 (batch, time).
    """

    def loss(self, hidden: Tensor, targets: Tensor, weight: Tensor) -> Tensor:
        """The scalar sum of weight * nll; weight is float32 (batch, time), 0 where masked."""
        raise NotImplementedError

    def nll(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """-log p(target) of each position in nats, float32 (batch, time)."""
        raise NotImplementedError

    def log_prob(self, hidden: Tensor) -> Iterator[Tensor]:
        """Chunks of log p in nats, float32 (positions, vocabulary), over hidden's positions."""
        raise NotImplementedError

    def keep_gradient(self) -> None:
        """After an update: gradients may be taken back, to use their memory again."""


class FullSoftmax(Head):
    """y_hat = softmax(U h + b_2) over the whole vocabulary; U is the weight of `embedding` where
    that is tied, its own otherwise.

    Logits exist for `chunk_size` positions at a time; null chooses it by the vocabulary.
    """

    def __init__(
        self,
        hidden_size: int,
        vocabulary_size: int,
        embedding: Embedding | None = None,
        init_range: float = 0.1,
        *,
        bias: bool = True,
        chunk_size: int | None = None,
    ) -> None:
        super().__init__()
        if embedding is not None and embedding.tied:
            self.weight = embedding.weight
            self._matrix = embedding.matrix
        else:
            self.weight = nn.Parameter(torch.empty(vocabulary_size, hidden_size))
            nn.init.uniform_(self.weight, -init_range, init_range)
            self._matrix = lambda: self.weight
        self.bias = nn.Parameter(torch.zeros(vocabulary_size)) if bias else None
        # 2 * hidden_size rows of bf16 take the memory of the matrix's gradient.
        self.chunk_size = chunk_size or max(2 * hidden_size, LOGITS_AT_ONCE // vocabulary_size)
        self._memory = Memory()

    def loss(self, hidden: Tensor, targets: Tensor, weight: Tensor) -> Tensor:
        return LinearCrossEntropy.apply(
            hidden.flatten(0, 1),
            self._matrix(),
            self.bias,
            targets.flatten(),
            weight.flatten(),
            self.chunk_size,
            self._memory,
        )

    def keep_gradient(self) -> None:
        self._memory.gradient, self.weight.grad = self.weight.grad, None

    def nll(self, hidden: Tensor, targets: Tensor) -> Tensor:
        if kernels.compiled(hidden.device, hidden.dtype) and not torch.is_grad_enabled():
            nll, _ = _loss_and_gradients(
                hidden.flatten(0, 1),
                self.weight,
                self.bias,
                targets.flatten(),
                torch.ones_like(targets.flatten(), dtype=torch.float32),
                self.chunk_size,
                hidden.dtype,
                self._memory,
                needs_grad=False,
            )
            return nll.view_as(targets)
        chunks = [
            -log_prob.gather(1, wanted[:, None])
            for log_prob, wanted in zip(
                self.log_prob(hidden), targets.flatten().split(self.chunk_size), strict=True
            )
        ]
        return torch.cat(chunks).view_as(targets)

    def log_prob(self, hidden: Tensor) -> Iterator[Tensor]:
        matrix = self.weight.to(hidden.dtype)
        for rows in hidden.flatten(0, 1).split(self.chunk_size):
            with fast_matmul():
                logits = F.linear(rows, matrix).float()
            if torch.is_grad_enabled():
                yield F.log_softmax(logits if self.bias is None else logits + self.bias, dim=1)
            else:
                logits = logits if self.bias is None else logits.add_(self.bias)
                yield torch.log_softmax(logits, dim=1, out=logits)


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
        device = hidden.device.type
        autocast = torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if autocast else weight.dtype
        scale = None
        if dtype == torch.float16:  # 1 / tokens is too small for it: rows are weighted up to 1
            scale = row_weight.max().clamp_min(torch.finfo(torch.float32).tiny)
            row_weight = row_weight / scale
        tensors = (hidden, weight, bias, targets, row_weight)
        ctx.save_for_backward(*tensors, scale)
        ctx.settings = (chunk_size, dtype, memory, any(ctx.needs_input_grad[:3]))
        nll, ctx.gradients = _loss_and_gradients(*tensors, *ctx.settings)
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
            _, gradients = _loss_and_gradients(*tensors, *ctx.settings)
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


def _loss_and_gradients(
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
            for start in range(0, vocabulary_size, max(step, 1)):
                part = slice(start, start + max(step, 1))
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
    width = -(-(size + 1) // ALIGNMENT) * ALIGNMENT
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
