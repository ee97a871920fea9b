"""Softmax and cross-entropy of W h + b on compiled kernels, without the logits.

What is in memory is odds, the exponentials of logits less the target's, straight from the
registers in which the product was summed. The normaliser is their sum, and by it only hidden
vectors are scaled, never the odds: with s_i = weight_i / sum_v odds_iv the gradients are
odds^T (s h) by W and s (odds W) by h, less weight_i times h_i and W_t for the target t.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lmkit.kernels import library
from lmkit.kernels.library import UNITS, call, padded

PANEL = 4  # vectors of positions that a product has in registers


def compiled(weight: Tensor, dtype: torch.dtype) -> bool:
    """Whether this is to be had for products with the weight in `dtype`."""
    return library.compiled(weight.device, dtype) and weight.dtype == torch.float32


def nll_and_odds(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, odds: Tensor | None
) -> tuple[Tensor, Tensor]:
    """hidden (positions, hidden_size) in the type of the products, weight float32 (vocabulary,
    hidden_size), bias float32 (vocabulary), targets int64 (positions) -> nll and normaliser
    float32 (positions).

    odds, unless None, has `num_odds` elements and is what `gradients` goes by.
    """
    positions, hidden_size = hidden.shape
    vocabulary_size = len(weight)
    if not positions:
        return hidden.new_empty(0, dtype=torch.float32), hidden.new_empty(0, dtype=torch.float32)
    lowest, highest = (int(extreme) for extreme in targets.aminmax())
    if lowest < 0 or highest >= vocabulary_size:  # C would read and write there
        raise IndexError(f"targets from {lowest} to {highest}: there are {vocabulary_size} logits")
    dtype, panels = hidden.dtype, _panels(positions)
    packed = hidden.new_empty(padded(positions) * padded(hidden_size, 2))
    call("pack_positions", dtype, positions, panels, hidden_size, hidden, packed)
    totals = weight.new_empty(padded(positions))
    # As the kernel does: factors in the type of the products, sums in float32.
    wanted = (hidden.float() * weight[targets].to(dtype).float()).sum(1)
    if bias is not None:
        wanted += bias[targets]
    origin = wanted.new_zeros(padded(positions))
    sizes = (positions, panels, vocabulary_size, hidden_size)

    def total_from(start: Tensor) -> Tensor:
        origin[:positions] = start
        call("softmax_odds", dtype, *sizes, packed, weight, bias, origin, odds, totals)
        return totals[:positions].clone()

    total = total_from(wanted)
    high = ~(total < 1e30)
    if not high.any():
        return total.log().clamp_min_(0), total
    start = wanted.clone()  # beside others these targets are next to impossible
    start[high] = _highest(hidden[high].float(), weight, bias)
    total = total_from(start)
    return total.log() + (start - wanted), total


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
    """Those of sum_i row_weight_i * nll_i: by hidden, float32, returned; into grad_weight, or
    with `add` on top of what it has; on top of grad_bias.

    odds and total are those of `nll_and_odds`; row_weight is float32 (positions).
    """
    positions, hidden_size = hidden.shape
    dtype, panels, share = hidden.dtype, _panels(positions), row_weight / total
    scaled = hidden.new_empty(padded(positions) * padded(hidden_size + 1))
    call("pack_inputs", dtype, positions, hidden_size, hidden, share, scaled)
    sizes = (positions, panels, len(weight), hidden_size)
    aimed = (hidden, targets, row_weight, share)
    call("odds_to_weight", dtype, *sizes, odds, scaled, *aimed, int(add), grad_weight, grad_bias)
    grad_hidden = weight.new_empty(positions, hidden_size)
    given = (odds, weight, targets, row_weight, share)
    call("odds_to_inputs", dtype, *sizes, *given, grad_hidden)
    return grad_hidden


def _panels(positions: int) -> int:
    return -(-padded(positions) // (PANEL * UNITS))
