"""The matrix memory of xLSTM: its layer and its model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lmkit.kernels.matmul import product_dtype
from lmkit.kernels.scan import linear_scan
from lmkit.model.heads import HeadNorm, MultiHead
from lmkit.model.layer import RecurrentInit
from lmkit.model.scanned import InputLayer, no_weight_dropout, not_orthogonal
from lmkit.model.state import State
from lmkit.ranges import Real

FORGET_GATE_BIASES = (3.0, 6.0)  # of the first and the last head, as in the authors' code
CHUNK = 64  # positions at a time, whose products with one another are in memory


class MLSTMLayer(InputLayer):
    """Beck et al. 2024 (arXiv:2405.04517), equations 19 to 27, with a sigmoid forget gate: each
    head has a matrix C, to which a position adds the product of a value and a key:

        C_t = f C_{t-1} + i v k^T;  n_t = f n_{t-1} + i k;  h_t = o C_t q / max(|n_t^T q|, 1),

    with i = exp(i~), k divided by the root of its size, and i and f scalars of a head; C and n are
    held divided by exp(m), m_t = max(log f + m_{t-1}, i~). No gate sees h, so up to `CHUNK`
    positions are computed at once from the state before them (appendix A.3 of the paper has the
    form for whole sequences). h does not depend on m, so m has no gradient.

    weight_ih has blocks q, k, v, o of hidden_size rows and i, f of num_heads. The state of a lane
    is C (num_heads, size, size), whose rows are keys and columns values, n (num_heads, size) and m
    (num_heads).
    """

    num_states = 3

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        init: RecurrentInit = "uniform",
        num_heads: int = 2,
        head_norm: bool = True,
        forget_gate_bias: float | None = None,
    ) -> None:
        blocks = [hidden_size] * 4 + [num_heads] * 2
        super().__init__(hidden_size, input_size, blocks, init)
        self.num_heads = num_heads
        self.norm = HeadNorm(hidden_size, num_heads) if head_norm else None
        told = FORGET_GATE_BIASES if forget_gate_bias is None else (forget_gate_bias,) * 2
        self.bias_ih.data[-num_heads:] = torch.linspace(*told, num_heads)

    def initial_state(self, num_lanes: int) -> State:
        """The zero state."""
        heads, size = self.num_heads, self.hidden_size // self.num_heads
        zeros = self.weight_ih.new_zeros
        return (
            zeros(num_lanes, heads, size, size),
            zeros(num_lanes, heads, size),
            zeros(num_lanes, heads),
        )

    def forward(self, inputs: Tensor, resets: Tensor, state: State) -> tuple[Tensor, State]:
        q, k, v, o, i, f = self.projected(inputs)
        count = -(-resets.shape[1] // CHUNK)
        with torch.autocast(inputs.device.type, enabled=False):
            k = k / math.sqrt(k.shape[-1] / self.num_heads)
            every = (x.chunk(count, dim=1) for x in (q, k, v, i, F.logsigmoid(f), resets))
            outputs = []
            for *vectors, i, log_f, here in zip(*every, strict=True):
                q, k, v = (x.unflatten(2, (self.num_heads, -1)).transpose(1, 2) for x in vectors)
                read, state = remembered(q, k, v, i, log_f, here, state)
                outputs.append(read.transpose(1, 2).flatten(2))
        hidden = torch.cat(outputs, dim=1)
        if self.norm is not None:
            hidden = self.norm(hidden)
        return (o.sigmoid() * hidden).to(product_dtype(inputs)), state


def remembered(
    q: Tensor, k: Tensor, v: Tensor, i: Tensor, log_f: Tensor, resets: Tensor, state: State
) -> tuple[Tensor, State]:
    """q, k, v (lanes, heads, time, size), i~ and log f (lanes, time, heads), resets bool (lanes,
    time), state -> C q / max(|n q|, 1) of each position (lanes, heads, time, size), and the state.

    With F_t the sum of log f since the last reset, or since the start, position t has of position s
    <= t after the same reset exp(F_t - F_s + i~_s), and of the state exp(F_t + m).
    """
    memory, normaliser, level = state
    document = resets.cumsum(1)
    # A running sum that ended before a reset would leave its rounding in what comes after.
    fall = linear_scan(torch.ones_like(log_f), log_f, resets, torch.zeros_like(log_f[:, 0]))
    fall, i = fall.transpose(1, 2), i.transpose(1, 2)  # (lanes, heads, time)
    seen = (document[:, :, None] == document[:, None]).tril() & ~resets[:, None]
    exponents = fall[..., :, None] + (i - fall)[..., None, :]  # (lanes, heads, time, time)
    exponents = exponents.masked_fill(~seen[:, None], -torch.inf)
    later = (document > 0)[:, None]  # positions that begin from the zero state, whose m is 0
    carry = fall + level[..., None].masked_fill(later, 0.0)
    levels = torch.maximum(exponents.amax(-1), carry).detach()
    weights = (exponents - levels[..., None]).exp()
    carried = (carry - levels).exp().masked_fill(later, 0.0)[..., None]
    scores = q @ k.mT * weights
    total = scores.sum(-1, keepdim=True) + carried * (q @ normaliser[..., None])
    values = scores @ v + carried * (q @ memory)
    least = (-levels).exp()[..., None]  # the 1 of the equation, divided as C and n are
    hidden = values / torch.maximum(total.abs(), least)
    keys = k * weights[..., -1, :, None]
    kept = carried[..., -1, :]
    after = (
        kept[..., None] * memory + keys.mT @ v,
        kept * normaliser + keys.sum(2),
        levels[..., -1].clone(),
    )
    return hidden, after


class MLSTM(MultiHead):
    """xLSTM's matrix memory (Beck et al. 2024): keys, values and queries, with exponential input
    gates and a normaliser. The residual block around it is not part of it.

    num_heads: matrices of each layer, each of (hidden_size / num_heads) squared numbers.
    head_norm: whether what each head reads is normalised, as in the paper's blocks.
    forget_gate_bias: of every forget gate at the start; null: from 3 to 6 over the heads.
    """

    def __init__(
        self,
        vocabulary_size: int,
        *,
        forget_gate_bias: Real | None = None,
        **settings: Any,
    ) -> None:
        """settings: the arguments of `MultiHead`."""
        self.forget_gate_bias = forget_gate_bias
        super().__init__(vocabulary_size, **settings)

    @staticmethod
    def mistakes(config: Mapping[str, Any], at: str) -> list[str]:
        """Mistakes that show only when the values are compared with one another."""
        return [
            *MultiHead.mistakes(config, at),
            *no_weight_dropout(config, at),
            *not_orthogonal(config, at),
        ]

    def make_layer(self, input_size: int, hidden_size: int, init: RecurrentInit) -> MLSTMLayer:
        settings = (self.num_heads, self.head_norm, self.forget_gate_bias)
        return MLSTMLayer(input_size, hidden_size, init, *settings)
