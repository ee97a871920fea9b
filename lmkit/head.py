"""From hidden vectors to per-token negative log-likelihood, never holding all the logits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmkit.gemm import fast_matmul

# Without `chunk_size`, rows at a time are as many as make this many logits (64 MiB in fp32).
LOGITS_AT_ONCE = 2**24


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


class FullSoftmax(Head):
    """y_hat = softmax(U h + b_2) over the whole vocabulary; `weight`, when given, is a tied U.

    Logits exist for `chunk_size` positions at a time; null chooses it by the vocabulary.
    """

    def __init__(
        self,
        hidden_size: int,
        vocabulary_size: int,
        weight: nn.Parameter | None = None,
        init_range: float = 0.1,
        *,
        bias: bool = True,
        chunk_size: int | None = None,
    ) -> None:
        super().__init__()
        if weight is None:
            weight = nn.Parameter(torch.empty(vocabulary_size, hidden_size))
            nn.init.uniform_(weight, -init_range, init_range)
        self.weight = weight
        self.bias = nn.Parameter(torch.zeros(vocabulary_size)) if bias else None
        self.chunk_size = chunk_size or max(1, LOGITS_AT_ONCE // vocabulary_size)

    def loss(self, hidden: Tensor, targets: Tensor, weight: Tensor) -> Tensor:
        return LinearCrossEntropy.apply(
            hidden.flatten(0, 1),
            self.weight,
            self.bias,
            targets.flatten(),
            weight.flatten(),
            self.chunk_size,
        )

    def nll(self, hidden: Tensor, targets: Tensor) -> Tensor:
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
    ) -> Tensor:
        """hidden (rows, hidden_size), weight (vocabulary, hidden_size), bias (vocabulary),
        targets and row_weight (rows) -> scalar float32."""
        device = hidden.device.type
        autocast = torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if autocast else weight.dtype
        # 1 / tokens is too small for half precision: rows are weighted up to 1 instead.
        scale = row_weight.max().clamp_min(torch.finfo(torch.float32).tiny)
        tensors = (hidden, weight, bias, targets, row_weight / scale)
        ctx.save_for_backward(*tensors, scale)
        ctx.settings = (chunk_size, dtype, any(ctx.needs_input_grad[:3]))
        loss, ctx.gradients = _loss_and_gradients(*tensors, *ctx.settings)
        return loss * scale

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
        factor = grad_loss * scale
        hidden, weight, bias = (
            None if gradient is None else gradient.mul_(factor).to(tensor.dtype)
            for gradient, tensor in zip(gradients, tensors[:3], strict=True)
        )
        return hidden, weight, bias, None, None, None


Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]


def _loss_and_gradients(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    row_weight: Tensor,
    chunk_size: int,
    dtype: torch.dtype,
    needs_grad: bool,
) -> tuple[Tensor, Gradients]:
    """The loss and its gradients by hidden (both float32), weight and bias.

    Three GEMMs a chunk: logits, then, from softmax minus one-hot in place of the logits, the
    gradients of h and U. GEMMs and softmax run in `dtype`.
    """
    total = torch.zeros((), device=hidden.device)
    grad_hidden = torch.empty_like(hidden, dtype=torch.float32) if needs_grad else None
    grad_weight: Tensor | None = None
    grad_bias: Tensor | None = None
    with torch.autocast(hidden.device.type, enabled=False), fast_matmul():
        inputs, matrix = hidden.to(dtype), weight.to(dtype)
        offset = None if bias is None else bias.to(dtype)
        chunk_size = -(-len(inputs) // -(-len(inputs) // chunk_size))  # as equal as can be
        memory = inputs.new_empty(chunk_size, len(weight))
        for begin in range(0, len(inputs), chunk_size):
            chunk = slice(begin, begin + chunk_size)
            rows, share = inputs[chunk], row_weight[chunk, None]
            logits = torch.mm(rows, matrix.T, out=memory[: len(rows)])
            if offset is not None:
                logits += offset
            nll, grad = _softmax_less_one_hot(logits, targets[chunk, None])
            total += (nll * share).sum()
            if grad_hidden is None:
                continue
            grad_hidden[chunk] = (grad @ matrix) * share
            rows = (rows * share).to(dtype)
            if grad_weight is None:
                grad_weight = (grad.T @ rows).to(weight.dtype)
            elif dtype == weight.dtype:
                grad_weight.addmm_(grad.T, rows)
            else:
                grad_weight += grad.T @ rows
            if bias is not None:
                part = (share.T.to(dtype) @ grad)[0]
                grad_bias = part.to(bias.dtype) if grad_bias is None else grad_bias.add_(part)
    return total, (grad_hidden, grad_weight, grad_bias)


def _softmax_less_one_hot(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """logits (rows, vocabulary), targets (rows, 1) -> nll (rows, 1) in float32 and, in the
    memory of the logits, its gradient by them."""
    highest, wanted = logits.amax(1, keepdim=True).float(), logits.gather(1, targets).float()
    grad = torch.softmax(logits, dim=1, out=logits)
    # The highest probability cannot underflow, as that of the target can.
    nll = highest - wanted - grad.amax(1, keepdim=True).float().log()
    grad.scatter_(1, targets, grad.gather(1, targets) - 1)  # scatter_add_ copies all of bf16
    return nll, grad
