"""Long short-term memory with a recurrent projection: its layer and its model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmkit.model.layer import RecurrentInit, draw_matrix
from lmkit.model.lstm import LSTMFamily, LSTMFamilyLayer
from lmkit.model.products import Products
from lmkit.model.state import State
from lmkit.ranges import Size


class ProjectedLSTMLayer(LSTMFamilyLayer):
    """Sak et al. 2014 (equations 7 to 12) without peepholes, as PyTorch has it: the output of an
    LSTM is m_t = o_t * tanh(c_t), that of this layer h_t = W_hr m_t, which the gates read too.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        init: RecurrentInit = "uniform",
        num_units: int | None = None,
    ) -> None:
        """hidden_size: of the outputs h. num_units: of the cells c."""
        super().__init__(input_size, hidden_size, init, num_units)
        self.weight_hr = nn.Parameter(torch.empty(hidden_size, self.num_units))
        draw_matrix(self.weight_hr, init)

    def initial_state(self, num_lanes: int) -> State:
        sizes = (self.hidden_size, self.num_units)
        return tuple(self.weight_hh.new_zeros(num_lanes, size) for size in sizes)

    def forward(self, inputs: Tensor, resets: Tensor, state: State) -> tuple[Tensor, State]:
        projected = F.linear(inputs, self.weight_ih, self.bias_ih + self.bias_hh)
        sums = Products(self.dropped("weight_hh"), projected)
        outputs = Products.alone(self.weight_hr, *resets.shape)

        def step(t: int, state: State) -> State:
            h, c = state
            m, c = self.lstm(sums(t, h).chunk(4, dim=-1), c)
            return outputs(t, m).to(h.dtype), c

        return self.loop(step, resets, state)


class LSTMP(LSTMFamily):
    """Long short-term memory with a recurrent projection (Sak et al. 2014): many cells, and outputs
    of fewer numbers, which next position, next layer and head read.

    hidden_size: cells of each layer.
    hidden_sizes: cells of each layer, one for each, in the place of hidden_size and num_layers.
    projection_size: of the outputs of each layer; with tie_weights the last one's are as large as
    the embedding.
    """

    def __init__(
        self,
        vocabulary_size: int,
        *,
        hidden_size: Size = 400,
        num_layers: Size = 2,
        hidden_sizes: Sequence[Size] | None = None,
        projection_size: Size = 200,
        **settings: Any,
    ) -> None:
        """settings: the arguments of `Recurrent`."""
        num_cells = list(hidden_sizes or [hidden_size] * num_layers)
        self._num_cells = iter(num_cells)
        sizes: dict[str, Any] = {"hidden_size": projection_size, "num_layers": len(num_cells)}
        super().__init__(vocabulary_size, **sizes, **settings)

    def make_layer(
        self, input_size: int, hidden_size: int, init: RecurrentInit
    ) -> ProjectedLSTMLayer:
        return ProjectedLSTMLayer(input_size, hidden_size, init, next(self._num_cells))
