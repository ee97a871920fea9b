"""The minimal GRU: its layer, of which the minimal LSTM's is another, and its model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmkit.kernels.matmul import product_dtype
from lmkit.model.layer import RecurrentInit, draw_matrix
from lmkit.model.recurrent import Recurrent
from lmkit.model.scanned import ScannedLayer, no_weight_dropout, not_orthogonal
from lmkit.model.state import State
from lmkit.ranges import Size


class MinGRULayer(ScannedLayer):
    """Feng et al. 2024 (arXiv:2410.01201), section 3.1 with appendix B: z = sigmoid(W_z x),
    h_t = (1 - z) h_{t-1} + z g(W_h x), where g(x) is x + 0.5 from 0 on and sigmoid(x) below.

    The paper computes log h, for which g keeps h positive, from h_0 = g(0). Here the recurrence
    itself is scanned: a is between 0 and 1, so it is as stable, and the numbers are the same but
    for h_0, which is zero, as after any reset. weight_ih has blocks of the gate, or gates, and of
    the candidate. With state_expansion k, h has k * hidden_size units, which
    weight_ho (hidden_size, k * hidden_size) brings down.
    """

    num_gates = 1  # beside the candidate

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        init: RecurrentInit = "uniform",
        state_expansion: int = 1,
    ) -> None:
        self.size = state_expansion * hidden_size
        super().__init__(hidden_size, input_size, [self.size] * (self.num_gates + 1), init)
        self.weight_ho = None
        if state_expansion > 1:
            self.weight_ho = nn.Parameter(torch.empty(hidden_size, self.size))
            draw_matrix(self.weight_ho, init)

    def initial_state(self, num_lanes: int) -> State:
        """The zero state: h (lanes, state_expansion * hidden_size)."""
        return (self.weight_ih.new_zeros(num_lanes, self.size),)

    def update_gate(self, *gates: Tensor) -> Tensor:
        """The share of the candidate in h, from the pre-activations of the gates."""
        return gates[0].sigmoid()

    def forward(self, inputs: Tensor, resets: Tensor, state: State) -> tuple[Tensor, State]:
        *gates, candidate = self.projected(inputs)
        z = self.update_gate(*gates)
        hidden = self.scanned(1 - z, z * positive(candidate), resets, state[0])
        outputs = hidden.to(product_dtype(inputs))
        if self.weight_ho is not None:
            outputs = F.linear(outputs, self.weight_ho)
        return outputs, (hidden[:, -1].clone(),)


def positive(x: Tensor) -> Tensor:
    """g of Feng et al. 2024, appendix B."""
    return torch.where(x >= 0, x + 0.5, x.sigmoid())


class MinGRU(Recurrent):
    """Minimal gated recurrent units (Feng et al. 2024), as the paper trains them.

    state_expansion: units of h for each of hidden_size, to which a matrix brings them down.
    """

    def __init__(self, vocabulary_size: int, *, state_expansion: Size = 1, **settings: Any) -> None:
        """settings: the arguments of `Recurrent`."""
        self.state_expansion = state_expansion
        super().__init__(vocabulary_size, **settings)

    @staticmethod
    def mistakes(config: Mapping[str, Any], at: str) -> list[str]:
        """Mistakes that show only when the values are compared with one another."""
        return [
            *Recurrent.mistakes(config, at),
            *not_orthogonal(config, at),
            *no_weight_dropout(config, at),
        ]

    def make_layer(self, input_size: int, hidden_size: int, init: RecurrentInit) -> MinGRULayer:
        return MinGRULayer(input_size, hidden_size, init, self.state_expansion)
