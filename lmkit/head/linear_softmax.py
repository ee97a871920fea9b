"""The softmax of U h + b for evaluation, by chunks of rows: exact, and differentiable twice."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from lmkit.kernels import softmax
from lmkit.kernels.matmul import fast_matmul

# Without a size of its own, a chunk has at least the rows that make this many logits. Each chunk
# costs a GPU's host some twenty launches, whatever its size.
LOGITS_AT_ONCE = 12 * 2**20
LOGITS_AT_ONCE_ON_GPU = 2**27


def rows_at_once(matrix: Tensor, chunk_size: int | None) -> int:
    """Of a chunk: few enough for memory, enough that not all the time goes into reading the
    matrix (vocabulary, hidden_size)."""
    vocabulary_size, hidden_size = matrix.shape
    if chunk_size is None and matrix.device.type != "cpu":
        return max(LOGITS_AT_ONCE_ON_GPU // vocabulary_size, 1)
    return chunk_size or max(3 * hidden_size // 2, LOGITS_AT_ONCE // vocabulary_size)


def linear_nll(
    hidden: Tensor, matrix: Tensor, bias: Tensor | None, targets: Tensor, chunk_size: int
) -> Tensor:
    """-log p(target) in nats, float32 (rows), of hidden (rows, hidden_size), matrix (vocabulary,
    hidden_size) and targets int64 (rows)."""
    if softmax.compiled(matrix, hidden.dtype) and not torch.is_grad_enabled():
        nll, _ = softmax.nll_and_odds(hidden.contiguous(), matrix, bias, targets, None)
        return nll
    chunks = [
        -log_prob.gather(1, target[:, None])[:, 0]
        for log_prob, target in zip(
            linear_log_prob(hidden, matrix, bias, chunk_size),
            targets.split(chunk_size),
            strict=True,
        )
    ]
    return torch.cat(chunks)


def linear_log_prob(
    hidden: Tensor, matrix: Tensor, bias: Tensor | None, chunk_size: int
) -> Iterator[Tensor]:
    """log p in nats, float32 (rows of a chunk, vocabulary), of hidden (rows, hidden_size)."""
    matrix = matrix.to(hidden.dtype)
    for rows in hidden.split(chunk_size):
        with fast_matmul():
            logits = F.linear(rows, matrix).float()
        if torch.is_grad_enabled():
            yield F.log_softmax(logits if bias is None else logits + bias, dim=1)
        else:
            logits = logits if bias is None else logits.add_(bias)
            yield torch.log_softmax(logits, dim=1, out=logits)
