"""The simple recurrent network: its layer and its model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from lmkit.model.layer import SHUT, RecurrentInit, RecurrentLayer
from lmkit.model.recurrent import Recurrent
from lmkit.model.state import State

Nonlinearity = Literal["tanh", "relu", "sigmoid"]


class ElmanLayer(RecurrentLayer):
    """Elman 1990: h_t = sigma(W_h h_{t-1} + W_e e_t + b), sigma any of tanh, relu, sigmoid.

    At a reset relu gives h = 0 by itself. sigmoid(x) = (1 + tanh(x/2)) / 2 runs on the tanh kernel
    with t = 2h - 1: a shut unit has t = -1, so h = 0. tanh gives h = -1; a second column, fed 1
    one position later, adds the row sums of W_h and so cancels W_h (-1).
    """

    num_gates = 1

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        init: RecurrentInit = "uniform",
        nonlinearity: Nonlinearity = "tanh",
    ) -> None:
        super().__init__(input_size, hidden_size, init)
        self.nonlinearity = nonlinearity

    @torch.no_grad()
    def start_as_tanh(self, inputs_are_hidden: bool) -> None:
        """Turn initial weights for tanh into those of a sigmoid layer whose outputs are
        (1 + tanh) / 2: sigmoid's slope is a quarter and its mean is not 0 (Glorot and Bengio 2010).
        """
        for bias in (self.bias_ih, self.bias_hh):
            bias.mul_(2)
        self.weight_ih.mul_(4 if inputs_are_hidden else 2)
        self.weight_hh.mul_(4)
        self.bias_hh.sub_(self.weight_hh.sum(1) / 2)
        if inputs_are_hidden:
            self.bias_ih.sub_(self.weight_ih.sum(1) / 2)

    def step(self, inputs: Sequence[Tensor], weights: Sequence[Tensor], state: State) -> State:
        return (getattr(torch, self.nonlinearity)(inputs[0] + state[0] @ weights[0].T),)

    def forward(self, inputs: Tensor, resets: Tensor, state: State) -> tuple[Tensor, State]:
        if any(self.zoneout):  # which no kernel has
            return super().forward(inputs, resets, state)
        (h,) = state
        shut = self.gates_shut(SHUT)
        weight_hh = self.dropped("weight_hh")
        row_sums = weight_hh.sum(1)
        weights: list[Tensor] = [weight_hh, self.bias_ih, self.bias_hh]
        if self.nonlinearity == "tanh":
            after = F.pad(resets[:, :-1], (1, 0))
            inputs, weight_ih = self.joined(inputs, [resets, after], [shut, row_sums[:, None]])
            hidden, h = self.native(torch.rnn_tanh, inputs, state, [weight_ih, *weights])
            return hidden, (h.masked_fill(resets[:, -1:], 0.0),)
        inputs, weight_ih = self.joined(inputs, [resets], [shut])
        if self.nonlinearity == "relu":
            hidden, h = self.native(torch.rnn_relu, inputs, state, [weight_ih, *weights])
            return hidden, (h,)
        bias = (self.bias_ih + self.bias_hh) / 2 + row_sums / 4
        weights = [weight_ih / 2, weight_hh / 4, bias, torch.zeros_like(bias)]
        hidden, h = self.native(torch.rnn_tanh, inputs, (2 * h - 1,), weights)
        return (1 + hidden) / 2, ((1 + h) / 2,)


class Elman(Recurrent):
    """The simple recurrent network of Elman 1990.

    nonlinearity: of the hidden units; sigmoid starts as tanh, seen from 0 to 1.
    """

    layer = ElmanLayer

    def __init__(
        self,
        vocabulary_size: int,
        *,
        nonlinearity: Nonlinearity = "tanh",
        **settings: Any,
    ) -> None:
        """settings: the arguments of `Recurrent`."""
        self.nonlinearity = nonlinearity
        super().__init__(vocabulary_size, **settings)
        for index, layer in enumerate(self.cells):
            assert isinstance(layer, ElmanLayer)
            if nonlinearity == "sigmoid":  # blocks normalise the inputs of their cells
                layer.start_as_tanh(inputs_are_hidden=index > 0 and not self.residual)

    def make_layer(self, input_size: int, hidden_size: int, init: RecurrentInit) -> ElmanLayer:
        return ElmanLayer(input_size, hidden_size, init, self.nonlinearity)
