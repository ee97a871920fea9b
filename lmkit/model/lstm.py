"""Long short-term memory: its layer, on compiled kernels or PyTorch's, and its model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lmkit import kernels
from lmkit.kernels.lstm import CompiledLSTM
from lmkit.kernels.matmul import product_dtype
from lmkit.model.layer import SHUT, RecurrentLayer
from lmkit.model.recurrent import Recurrent
from lmkit.model.state import State
from lmkit.ranges import Real, Share


class LSTMFamilyLayer(RecurrentLayer):
    """A layer with the gates i, f, g and o, in this order, and a state (h, c).

    cap_input_gate: whether the input gate is at most 1 minus the forget gate.
    """

    num_gates = 4
    num_states = 2
    cap_input_gate = False

    def cells(self, i: Tensor, f: Tensor, g: Tensor, c: Tensor) -> Tensor:
        """The sums of three gates and the cells, (lanes, size) each -> the cells after it."""
        i, f = i.sigmoid(), f.sigmoid()
        if self.cap_input_gate:
            i = torch.minimum(i, 1 - f)
        return f * c + i * g.tanh()

    def lstm(self, gates: Sequence[Tensor], c: Tensor) -> tuple[Tensor, Tensor]:
        """The sums of the gates and the cells, (lanes, size) each -> h and c after it."""
        i, f, g, o = gates
        c = self.cells(i, f, g, c)
        return o.sigmoid() * c.tanh(), c


class LSTMLayer(LSTMFamilyLayer):
    """Hochreiter and Schmidhuber 1997 with the forget gate of Gers et al. 2000.

    At a reset i, f and o are 0, so c = f * c + i * g = 0 and h = o * tanh(c) = 0.
    """

    fewest_lanes = 64  # from here on packing the weights pays even for a single position

    def step(self, inputs: Sequence[Tensor], weights: Sequence[Tensor], state: State) -> State:
        h, c = state
        return self.lstm([x + h @ w.T for x, w in zip(inputs, weights, strict=True)], c)

    def forward(self, inputs: Tensor, resets: Tensor, state: State) -> tuple[Tensor, State]:
        drops_state = self.training and self.state_dropout
        if any(self.zoneout) or self.cap_input_gate or drops_state:  # which no kernel has
            return super().forward(inputs, resets, state)
        weight_hh = self.dropped("weight_hh")
        weights: list[Tensor] = [self.weight_ih, weight_hh, self.bias_ih, self.bias_hh]
        dtype = product_dtype(inputs)
        needs_grad = torch.is_grad_enabled()
        many = needs_grad or resets.shape[1] > 1 or len(resets) >= self.fewest_lanes
        if many and weight_hh.dtype == torch.float32 and kernels.compiled(inputs.device, dtype):
            hidden, h, c = CompiledLSTM.apply(inputs, resets, *state, *weights, dtype, needs_grad)
            return hidden, (h, c)
        if inputs.device.type != "cpu" or resets.any():  # do not wait for an accelerator
            column = self.gates_shut(SHUT, SHUT, 0.0, SHUT)  # i, f, g, o
            inputs, weights[0] = self.joined(inputs, [resets], [column])
        hidden, h, c = self.native(torch.lstm, inputs, state, weights)
        return hidden, (h, c)


class LSTMFamily(Recurrent):
    """Stacks of layers with the gates i, f, g and o, in this order, and a state (h, c).

    forget_gate_bias: of every forget gate at the start (Gers et al. 2000; Jozefowicz et al. 2015
    use 1); null: as the other biases.
    cell_zoneout: zoneout of the cells; null: as that of the outputs.
    cap_input_gate: the input gate is at most 1 minus the forget gate, so that cells stay between -1
    and 1 (Melis et al. 2018); no kernel has it, so it is slower.
    state_dropout: share of the outputs that the gates of a window's next positions do not read, the
    same at all of them (Gal and Ghahramani 2016); no kernel has it, so training is slower.
    """

    def __init__(
        self,
        vocabulary_size: int,
        *,
        forget_gate_bias: Real | None = None,
        cell_zoneout: Share | None = None,
        cap_input_gate: bool = False,
        state_dropout: Share = 0.0,
        **settings: Any,
    ) -> None:
        """settings: the arguments of `Recurrent`."""
        super().__init__(vocabulary_size, **settings)
        self.cap_input_gate = cap_input_gate
        for layer in self.cells:
            assert isinstance(layer, LSTMFamilyLayer)
            layer.cap_input_gate = cap_input_gate
            layer.state_dropout = state_dropout
            if forget_gate_bias is not None:
                nn.init.constant_(layer.bias_ih.data.chunk(4)[1], forget_gate_bias)
                nn.init.zeros_(layer.bias_hh.data.chunk(4)[1])
            if cell_zoneout is not None:
                layer.zoneout = (layer.zoneout[0], cell_zoneout)
        zoned = any(any(layer.zoneout) for layer in self.cells)
        in_kernels = not (zoned or cap_input_gate or state_dropout)
        self.any_threads = self.any_threads and in_kernels


class LSTM(LSTMFamily):
    """Long short-term memory (Hochreiter and Schmidhuber 1997)."""

    layer = LSTMLayer
    any_threads = True
