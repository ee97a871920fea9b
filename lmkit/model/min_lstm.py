"""The minimal LSTM: its layer and its model."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from lmkit.model.layer import RecurrentInit
from lmkit.model.min_gru import MinGRU, MinGRULayer
from lmkit.ranges import Real


class MinLSTMLayer(MinGRULayer):
    """Feng et al. 2024, section 3.2 with appendix B: f = sigmoid(W_f x), i = sigmoid(W_i x), h_t =
    f / (f + i) h_{t-1} + i / (f + i) g(W_h x). weight_ih has blocks f, i and the candidate's."""

    num_gates = 2

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        init: RecurrentInit = "uniform",
        state_expansion: int = 1,
        forget_gate_bias: float | None = None,
    ) -> None:
        super().__init__(input_size, hidden_size, init, state_expansion)
        if forget_gate_bias is not None:
            nn.init.constant_(self.bias_ih.data[: self.size], forget_gate_bias)

    def update_gate(self, *gates: Tensor) -> Tensor:
        """i / (f + i), from the logarithms of both, so that it is never 0 / 0."""
        f, i = gates
        return (F.logsigmoid(i) - F.logsigmoid(f)).sigmoid()


class MinLSTM(MinGRU):
    """Minimal long short-term memory (Feng et al. 2024), as the paper trains it.

    forget_gate_bias: of every forget gate at the start (Jozefowicz et al. 2015 use 1); null: as
    the other biases.
    """

    def __init__(
        self, vocabulary_size: int, *, forget_gate_bias: Real | None = None, **settings: Any
    ) -> None:
        """settings: the arguments of `MinGRU`."""
        self.forget_gate_bias = forget_gate_bias
        super().__init__(vocabulary_size, **settings)

    def make_layer(self, input_size: int, hidden_size: int, init: RecurrentInit) -> MinLSTMLayer:
        settings = (self.state_expansion, self.forget_gate_bias)
        return MinLSTMLayer(input_size, hidden_size, init, *settings)
