"""Softmax and cross-entropy of W h + b on compiled kernels, without the logits.

Instead of logits, memory holds relative probabilities, here called odds: odds_iv = exp(logit_iv -
logit_it) for the target t of position i, written straight from the registers that sum the product.
Their sum is the normaliser. It scales only hidden vectors, never the odds: with s_i = weight_i /
sum_v odds_iv the gradients are odds^T (s h) of W and s (odds W) of h, minus weight_i h_i in row t
of W's and weight_i W_t in row i of h's.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lmkit.kernels import library
from lmkit.kernels.library import UNITS, call, padded

PANEL = 4  # vectors of positions that a product holds in registers


def compiled(weight: Tensor, dtype: torch.dtype) -> bool:
    """Whether these kernels are available for products with the weight in `dtype`."""
    return library.compiled(weight.device, dtype) and weight.dtype == torch.float32


def nll_and_odds(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, odds: Tensor | None
) -> tuple[Tensor, Tensor]:
    """hidden (positions, hidden_size) in the type of the products, weight float32 (vocabulary,
    hidden_size), bias float32 (vocabulary), targets int64 (positions) -> nll and normaliser
    float32 (positions).

    odds, unless None, has `num_odds` elements and is filled in for `gradients`.
    """
    positions, hidden_size = hidden.shape
    vocabulary_size = len(weight)
    if not positions:
        return hidden.new_empty(0, dtype=torch.float32), hidden.new_empty(0, dtype=torch.float32)
    lowest, highest = (int(extreme) for extreme in targets.aminmax())
    if lowest < 0 or highest >= vocabulary_size:  # C would read and write out of bounds
        raise IndexError(f"targets from {lowest} to {highest}: there are {vocabulary_size} logits")
    dtype, panels = hidden.dtype, _panels(positions)
    packed = hidden.new_empty(padded(positions) * padded(hidden_size, 2))
    call("pack_positions", dtype, positions, panels, hidden_size, hidden, packed)
    totals = weight.new_empty(padded(positions))
    # The targets' logits, computed as in the kernel: factors in `dtype`, sums in float32.
    target_logits = (hidden.float() * weight[targets].to(dtype).float()).sum(1)
    if bias is not None:
        target_logits += bias[targets]
    origin = target_logits.new_zeros(padded(positions))
    sizes = (positions, panels, vocabulary_size, hidden_size)

    def total_from(start: Tensor) -> Tensor:
        origin[:positions] = start
        call("softmax_odds", dtype, *sizes, packed, weight, bias, origin, odds, totals)
        return totals[:positions].clone()

    total = total_from(target_logits)
    high = ~(total < 1e30)
    if not high.any():
        return total.log().clamp_min_(0), total
    start = target_logits.clone()  # raised where odds overflow, as for very unlikely targets
    start[high] = _highest(hidden[high].float(), weight, bias)
    total = total_from(start)
    return total.log() + (start - target_logits), total


def _highest(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The highest logit of each row, in float32."""
    with torch.autocast("cpu", enabled=False):
        return torch.cat([F.linear(rows, weight, bias).amax(1) for rows in hidden.split(64)])


def num_odds(positions: int, vocabulary_size: int) -> int:
    return padded(positions) * padded(vocabulary_size, 2)


def gradients(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    row_weight: Tensor,
    total: Tensor,
    odds: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor | None,
    *,
    add: bool,
) -> Tensor:
    """The gradients of sum_i row_weight_i * nll_i. Returns that of hidden, float32; writes that of
    the weight to grad_weight, or with `add` adds it; adds the one of the bias to grad_bias.

    odds and total come from `nll_and_odds`; row_weight is float32 (positions).
    """
    positions, hidden_size = hidden.shape
    dtype, panels, share = hidden.dtype, _panels(positions), row_weight / total
    scaled = hidden.new_empty(padded(positions) * padded(hidden_size + 1))
    call("pack_inputs", dtype, positions, hidden_size, hidden, share, scaled)
    sizes = (positions, panels, len(weight), hidden_size)
    rows = (hidden, targets, row_weight, share)
    call("odds_to_weight", dtype, *sizes, odds, scaled, *rows, int(add), grad_weight, grad_bias)
    grad_hidden = weight.new_empty(positions, hidden_size)
    factors = (odds, weight, targets, row_weight, share)
    call("odds_to_inputs", dtype, *sizes, *factors, grad_hidden)
    return grad_hidden


def _panels(positions: int) -> int:
    return -(-padded(positions) // (PANEL * UNITS))
