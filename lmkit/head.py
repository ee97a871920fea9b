"""From hidden vectors to per-token negative log-likelihood, never holding all the logits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Without `chunk_size`, rows at a time are as many as make this many logits (128 MiB in fp32).
LOGITS_AT_ONCE = 2**25


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
            F.cross_entropy(self._logits(rows), wanted, reduction="none")
            for rows, wanted in zip(
                hidden.flatten(0, 1).split(self.chunk_size),
                targets.flatten().split(self.chunk_size),
                strict=True,
            )
        ]
        return torch.cat(chunks).view_as(targets)

    def log_prob(self, hidden: Tensor) -> Iterator[Tensor]:
        for rows in hidden.flatten(0, 1).split(self.chunk_size):
            yield F.log_softmax(self._logits(rows), dim=-1)

    def _logits(self, rows: Tensor) -> Tensor:
        return F.linear(rows, self.weight.to(rows.dtype), None).float() + (
            0 if self.bias is None else self.bias
        )


class LinearCrossEntropy(torch.autograd.Function):
    """sum_i weight_i * CE(U h_i + b, target_i), its gradients made in forward, by chunks of rows.

    Three GEMMs a chunk: logits, then, from softmax minus one-hot in place of the logits, the
    gradients of h and U. Backward multiplies them by one number. The GEMMs run in autocast's
    dtype where it is on, softmax and sums in fp32.
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
        needs_grad = any(ctx.needs_input_grad[:3])
        with torch.autocast(device, enabled=False):
            matrix = weight.to(dtype)
            total = torch.zeros((), dtype=torch.float32, device=hidden.device)
            grad_hidden = torch.empty_like(hidden, dtype=dtype) if needs_grad else None
            grad_weight = torch.zeros_like(weight) if needs_grad else None
            grad_bias = torch.zeros_like(bias) if needs_grad and bias is not None else None
            for begin in range(0, len(hidden), chunk_size):
                chunk = slice(begin, begin + chunk_size)
                rows = hidden[chunk].to(dtype)
                logits = (rows @ matrix.T).float()
                if bias is not None:
                    logits += bias
                wanted = targets[chunk, None]
                log_sum = logits.logsumexp(dim=1, keepdim=True)
                nll = log_sum - logits.gather(1, wanted)
                total += (nll[:, 0] * row_weight[chunk]).sum()
                if grad_hidden is None or grad_weight is None:
                    continue
                # d nll / d logits = softmax - one-hot, in the memory of the logits.
                grad = logits.sub_(log_sum).exp_()
                grad.scatter_add_(1, wanted, torch.full_like(nll, -1.0))
                grad *= row_weight[chunk, None]
                if grad_bias is not None:
                    grad_bias += grad.sum(0)
                grad = grad.to(dtype)
                torch.mm(grad, matrix, out=grad_hidden[chunk])
                if dtype == weight.dtype:
                    grad_weight.addmm_(grad.T, rows)
                else:
                    grad_weight += grad.T @ rows
        if needs_grad:
            ctx.save_for_backward(grad_hidden, grad_weight, grad_bias)
            ctx.hidden_dtype = hidden.dtype
        return total

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # only under create_graph=True
            raise RuntimeError(
                "the fused loss made its gradients in forward and has no second derivative: "
                "use head.nll, which autograd can differentiate twice"
            )
        grad_hidden, grad_weight, grad_bias = ctx.saved_tensors
        return (
            (grad_hidden * grad_loss).to(ctx.hidden_dtype),
            grad_weight * grad_loss,
            None if grad_bias is None else grad_bias * grad_loss,
            None,
            None,
            None,
        )
