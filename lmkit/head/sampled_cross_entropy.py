"""The fused cross-entropy of targets among sampled words."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from lmkit.head.linear_cross_entropy import Memory
from lmkit.head.made_in_forward import hand_out, make
from lmkit.kernels.matmul import fast_matmul, product_dtype
from lmkit.kernels.order import any_order


class Sampled(NamedTuple):
    """The arguments of sum_i weight_i * CE of target_i among `candidates` and itself."""

    hidden: Tensor  # (rows, hidden_size)
    matrix: Tensor  # U, (vocabulary, hidden_size)
    bias: Tensor | None  # (vocabulary)
    log_expected: Tensor  # float32 (vocabulary), which is taken off each logit
    candidates: Tensor  # int64, ascending
    targets: Tensor  # int64 (rows)
    weight: Tensor  # float32 (rows)


class Settings(NamedTuple):
    """How a loss is computed. sparse: whether the gradient of the matrix is."""

    chunk_size: int
    dtype: torch.dtype
    memory: Memory
    sparse: bool
    needs_grad: bool


class SampledCrossEntropy(torch.autograd.Function):
    """The loss of `Sampled`, whose gradients forward computes too, by chunks of rows. Nothing waits
    for an accelerator."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        matrix: Tensor,
        bias: Tensor | None,
        log_expected: Tensor,
        candidates: Tensor,
        targets: Tensor,
        weight: Tensor,
        chunk_size: int,
        memory: Memory,
        sparse: bool,
    ) -> tuple[Tensor, Tensor]:
        """The fields of `Sampled` and `Settings` -> the loss and the sum of nll, as
        `made_in_forward.make` has them."""
        dtype = product_dtype(matrix)
        settings = Settings(chunk_size, dtype, memory, sparse, any(ctx.needs_input_grad[:3]))

        def compute(*tensors: Any) -> tuple[Tensor, list[Tensor | None]]:
            return _computed(Sampled(*tensors), settings)

        tensors = (hidden, matrix, bias, log_expected, candidates, targets)
        return make(ctx, compute, tensors, weight, dtype)

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
        return hand_out(ctx, grad_loss, 10)


def _computed(terms: Sampled, settings: Settings) -> tuple[Tensor, list[Tensor | None]]:
    """nll (rows), and the gradients by hidden, matrix and bias."""
    with torch.autocast(terms.hidden.device.type, enabled=False), fast_matmul():
        return _by_chunks(terms, settings)


def _by_chunks(terms: Sampled, settings: Settings) -> tuple[Tensor, list[Tensor | None]]:
    dtype, candidates = settings.dtype, terms.candidates
    taken_off = -terms.log_expected if terms.bias is None else terms.bias - terms.log_expected
    drawn = terms.matrix[candidates].to(dtype)
    nll = torch.empty_like(terms.weight)
    if settings.needs_grad:
        of_hidden = torch.empty_like(terms.hidden, dtype=torch.float32)
        of_drawn = torch.zeros_like(drawn, dtype=torch.float32)
        of_bias = torch.zeros_like(taken_off)
        by_target = torch.empty_like(terms.weight)  # the derivative by each target's logit
    for begin in range(0, len(nll), settings.chunk_size):
        chunk = slice(begin, begin + settings.chunk_size)
        hidden, target, weight = (
            each[chunk] for each in (terms.hidden, terms.targets, terms.weight)
        )
        rows, wanted_rows = hidden.to(dtype), terms.matrix[target].to(dtype)
        wanted = (rows.float() * wanted_rows.float()).sum(1) + taken_off[target]
        logits = settings.memory.scratch("logits", rows, len(rows), len(candidates))
        torch.mm(rows, drawn.T, out=logits)
        logits = logits.float() if dtype != torch.float32 else logits
        logits += taken_off[candidates]
        _without_hits(logits, candidates, target)
        total = torch.logaddexp(logits.logsumexp(1), wanted)
        nll[chunk] = total - wanted
        if not settings.needs_grad:
            continue
        grad = logits.sub_(total[:, None]).exp_().mul_(weight[:, None])
        by_target[chunk] = -grad.sum(1)  # weight * (p - 1), as with p all add up to 1
        of_bias.index_add_(0, candidates, grad.sum(0))
        grad = grad.to(dtype)
        of_hidden[chunk] = grad @ drawn
        of_hidden[chunk] += by_target[chunk, None] * wanted_rows.float()
        of_drawn += grad.T @ rows
    if not settings.needs_grad:
        return nll, [None, None, None]
    of_target = by_target[:, None] * terms.hidden.to(dtype).float()
    ids, rows = torch.cat([candidates, terms.targets]), torch.cat([of_drawn, of_target])
    of_bias.index_add_(0, terms.targets, by_target)
    of_matrix = _of_matrix(ids, rows, terms.matrix, settings)
    return nll, [of_hidden, of_matrix, None if terms.bias is None else of_bias]


def _without_hits(logits: Tensor, candidates: Tensor, targets: Tensor) -> None:
    """Set the logit of a candidate that is the target itself to -inf, in place; logits (rows,
    candidates), targets (rows)."""
    place = torch.searchsorted(candidates, targets).clamp_max_(len(candidates) - 1)[:, None]
    is_hit = candidates[place] == targets[:, None]
    with any_order():  # one write in each row: PyTorch would sort the indices on a GPU
        logits.scatter_(1, place, logits.gather(1, place).masked_fill_(is_hit, -torch.inf))


def _of_matrix(ids: Tensor, rows: Tensor, matrix: Tensor, settings: Settings) -> Tensor:
    """The gradient (vocabulary, size) of which `rows` (n, size) are the parts of `ids` (n)."""
    if settings.sparse:
        return torch.sparse_coo_tensor(
            ids[None], rows, matrix.shape, check_invariants=False, is_coalesced=False
        )
    return settings.memory.gradient_of(matrix).zero_().index_add_(0, ids, rows)
