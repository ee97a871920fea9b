"""Long short-term memory with layer normalisation: its layer and its model."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmkit.model.layer import RecurrentInit
from lmkit.model.lstm import LSTMFamily, LSTMFamilyLayer
from lmkit.model.products import Products
from lmkit.model.state import State


class LayerNormLSTMLayer(LSTMFamilyLayer):
    """Ba et al. 2016 (equations 20 to 22):

        i, f, g, o = LN(W_h h; gain_hh, bias_hh) + LN(W_x x; gain_ih, bias_ih)
        c = sigmoid(f) * c + sigmoid(i) * tanh(g)
        h = sigmoid(o) * tanh(LN(c; gain_c, bias_c))

    LN(z; gain, bias) is gain * (z - mean) / deviation + bias over all numbers of z, so that the
    four gates have one mean and one deviation. Biases, which are b of equation 20 as well, begin as
    0 and gains as 1, but gain_hh as 0.1 (as in Cooijmans et al. 2017, for batch normalisation):
    with 1 the first updates magnify rounding errors a thousandfold.
    """

    def __init__(self, input_size: int, hidden_size: int, init: RecurrentInit = "uniform") -> None:
        super().__init__(input_size, hidden_size, init)
        rows = len(self.weight_hh)
        self.gain_ih, self.gain_hh, self.gain_c = (
            nn.Parameter(torch.ones(size)) for size in (rows, rows, hidden_size)
        )
        nn.init.constant_(self.gain_hh, 0.1)
        self.bias_c = nn.Parameter(torch.zeros(hidden_size))
        nn.init.zeros_(self.bias_ih)
        nn.init.zeros_(self.bias_hh)

    def forward(self, inputs: Tensor, resets: Tensor, state: State) -> tuple[Tensor, State]:
        projected = layer_norm(
            F.linear(inputs, self.weight_ih), self.gain_ih, self.bias_ih + self.bias_hh
        )
        xs = projected.unbind(1)
        recurrent = Products.alone(self.dropped("weight_hh"), *resets.shape)

        def step(t: int, state: State) -> State:
            h, c = state
            i, f, g, o = (xs[t] + layer_norm(recurrent(t, h), self.gain_hh)).chunk(4, dim=1)
            c = self.cells(i, f, g, c)
            return o.sigmoid() * layer_norm(c, self.gain_c, self.bias_c).tanh(), c

        return self.loop(step, resets, state)


def layer_norm(tensor: Tensor, gain: Tensor, bias: Tensor | None = None) -> Tensor:
    """Over the last dimension, in float32 under autocast."""
    return F.layer_norm(tensor.to(gain.dtype), gain.shape, gain, bias)


class LayerNormLSTM(LSTMFamily):
    """Long short-term memory whose sums are normalised at each position (Ba et al. 2016)."""

    layer = LayerNormLSTMLayer
