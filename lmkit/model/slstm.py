"""The scalar memory of xLSTM: its layer and its model."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lmkit.kernels.matmul import product_dtype
from lmkit.model.heads import HeadNorm, MultiHead
from lmkit.model.layer import RecurrentInit, draw_matrix, stacked
from lmkit.model.scanned import InputLayer, wide
from lmkit.model.state import State
from lmkit.ranges import Real


class SLSTMLayer(InputLayer):
    """Beck et al. 2024 (arXiv:2405.04517), equations 8 to 18, with a sigmoid forget gate: an LSTM
    whose input gate is exp(.), which a normaliser n divides by, with exponents kept small by m:

        m_t = max(log f + m_{t-1}, i~);  i = exp(i~ - m_t);  f' = exp(log f + m_{t-1} - m_t);
        c_t = f' c_{t-1} + i z;  n_t = f' n_{t-1} + i;  h_t = o c_t / n_t.

    Where nothing is in memory yet, n = 0, m_t is i~, as in the authors' code. h does not depend on
    m, so m has no gradient. weight_ih, weight_hh and bias_ih have blocks i, f, z, o, of hidden_size
    rows; a head's rows of weight_hh (rows, hidden_size / num_heads) are for the units of h of the
    same head: memory mixes within heads. The state is h, c, n, m, each (lanes, hidden_size).
    """

    num_states = 4

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        init: RecurrentInit = "uniform",
        num_heads: int = 2,
        head_norm: bool = True,
        forget_gate_bias: float = 1.0,
    ) -> None:
        super().__init__(hidden_size, input_size, [hidden_size] * 4, init)
        self.num_heads = num_heads
        size = hidden_size // num_heads
        # A gate's matrix is zero but for a square of each head, which is a block by itself.
        self.weight_hh = stacked([size] * 4 * num_heads, size)
        self.norm = HeadNorm(hidden_size, num_heads) if head_norm else None
        with torch.no_grad():
            self.bias_ih.chunk(4)[1].fill_(forget_gate_bias)
            for block in self.weight_hh.chunk(4 * num_heads):
                draw_matrix(block, init)

    def initial_state(self, num_lanes: int) -> State:
        """The zero state."""
        zeros = self.weight_hh.new_zeros
        return tuple(zeros(num_lanes, self.hidden_size) for _ in range(self.num_states))

    def forward(self, inputs: Tensor, resets: Tensor, state: State) -> tuple[Tensor, State]:
        lanes, time = resets.shape
        heads, size = self.num_heads, self.hidden_size // self.num_heads
        gates = torch.stack(self.projected(inputs), dim=2)  # (lanes, time, 4, hidden_size)
        gates = gates.view(lanes, time, 4, heads, size).permute(1, 3, 0, 2, 4)
        gates = gates.reshape(time, heads, lanes, 4 * size)
        recurrent = self.dropped("weight_hh").view(4, heads, size, size)
        recurrent = recurrent.permute(1, 3, 0, 2).reshape(heads, size, 4 * size)
        # Each part of the state is (heads, lanes, size) from here on.
        h, c, n, m = (part.view(lanes, heads, size).transpose(0, 1) for part in state)
        outputs = []
        for here, reset in zip(gates.unbind(0), resets.T[:, None, :, None].unbind(0), strict=True):
            i, f, z, o = (here + wide(h @ recurrent)).chunk(4, dim=-1)
            kept = (F.logsigmoid(f) + m).masked_fill(n == 0, -torch.inf)
            m = torch.maximum(kept, i).detach()
            i, f = (i - m).exp(), (kept - m).exp()
            c, n = f * c + i * z.tanh(), f * n + i
            h = o.sigmoid() * c / n
            h, c, n, m = (part.masked_fill(reset, 0.0) for part in (h, c, n, m))
            outputs.append(h)
        hidden = torch.stack(outputs).permute(2, 0, 1, 3).reshape(lanes, time, self.hidden_size)
        if self.norm is not None:
            hidden = self.norm(hidden)
        after = (part.transpose(0, 1).reshape(lanes, self.hidden_size) for part in (h, c, n, m))
        return hidden.to(product_dtype(inputs)), tuple(after)


class SLSTM(MultiHead):
    """xLSTM's scalar memory (Beck et al. 2024): an LSTM with exponential input gates, a normaliser
    and memory mixing within heads. The residual block around it is not part of it.

    num_heads: parts of each layer between which no recurrent connection goes.
    head_norm: whether each head's outputs are normalised, as in the paper's blocks.
    forget_gate_bias: of every forget gate at the start (Jozefowicz et al. 2015 use 1).
    """

    def __init__(
        self,
        vocabulary_size: int,
        *,
        forget_gate_bias: Real = 1.0,
        **settings: Any,
    ) -> None:
        """settings: the arguments of `MultiHead`."""
        self.forget_gate_bias = forget_gate_bias
        super().__init__(vocabulary_size, **settings)

    def make_layer(self, input_size: int, hidden_size: int, init: RecurrentInit) -> SLSTMLayer:
        settings = (self.num_heads, self.head_norm, self.forget_gate_bias)
        return SLSTMLayer(input_size, hidden_size, init, *settings)
