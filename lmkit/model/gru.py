"""Gated recurrent units: their layer and their model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lmkit.model.layer import SHUT, RecurrentLayer
from lmkit.model.recurrent import Recurrent
from lmkit.model.state import State


class GRULayer(RecurrentLayer):
    """One layer of gated recurrent units (Cho et al. 2014), in cuDNN's form.

    At a reset r and z are 0, the input is 0 and the reset column cancels the input bias of n, so
    h = (1 - z) * n + z * h = n = tanh(b - b) = 0.
    """

    num_gates = 3

    def step(self, inputs: Sequence[Tensor], weights: Sequence[Tensor], state: State) -> State:
        (h,) = state
        r, z, n = (h @ weight.T for weight in weights)
        bias = self.bias_hh[2 * self.hidden_size :]  # of n: the input has it too
        r, z = (inputs[0] + r).sigmoid(), (inputs[1] + z).sigmoid()
        n = (inputs[2] - bias + r * (n + bias)).tanh()
        return ((1 - z) * n + z * h,)

    def forward(self, inputs: Tensor, resets: Tensor, state: State) -> tuple[Tensor, State]:
        if any(self.zoneout):  # which no kernel has
            return super().forward(inputs, resets, state)
        shut = self.gates_shut(SHUT, SHUT)  # r, z
        column = torch.cat([shut, -self.bias_ih[2 * self.hidden_size :, None]])
        inputs = inputs.masked_fill(resets[..., None], 0.0)
        inputs, weight_ih = self.joined(inputs, [resets], [column])
        weights = [weight_ih, self.dropped("weight_hh"), self.bias_ih, self.bias_hh]
        hidden, h = self.native(torch.gru, inputs, state, weights)
        return hidden, (h,)


class GRU(Recurrent):
    """Gated recurrent units (Cho et al. 2014)."""

    layer = GRULayer
