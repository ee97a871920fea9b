"""Recurrent layers on PyTorch's native kernels, with an exact reset in mid-sequence.

The native kernels cannot zero the state inside a sequence. At a reset position the gates are
forced instead: one more input column, fed 1 there and 0 elsewhere, whose constant weights shut
every path from the past. The column is joined after dropout and is never a parameter.

States are tuples of (lanes, hidden_size) tensors. What a layer puts out at a reset position
is not meant to be read.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmkit import kernels
from lmkit.kernels.lstm import CompiledLSTM
from lmkit.kernels.matmul import product_dtype

State = tuple[Tensor, ...]
RecurrentInit = Literal["uniform", "xavier", "orthogonal"]
Nonlinearity = Literal["tanh", "relu", "sigmoid"]

SHUT = -1e4  # sigmoid and relu of it are exactly 0, tanh exactly -1; fits in half precision


class RecurrentLayer(nn.Module):
    """One layer of a recurrent network: weights of `num_gates` blocks, native kernel, resets."""

    num_gates: int
    num_states = 1

    def __init__(self, input_size: int, hidden_size: int, init: RecurrentInit = "uniform") -> None:
        super().__init__()
        self.hidden_size = hidden_size
        rows = self.num_gates * hidden_size
        self.weight_ih = nn.Parameter(torch.empty(rows, input_size))
        self.weight_hh = nn.Parameter(torch.empty(rows, hidden_size))
        self.bias_ih = nn.Parameter(torch.empty(rows))
        self.bias_hh = nn.Parameter(torch.empty(rows))
        self.initialise(init)

    @torch.no_grad()
    def initialise(self, init: RecurrentInit) -> None:
        """`uniform` is PyTorch's own, U(-1/sqrt(hidden), 1/sqrt(hidden)) for everything; the
        others act on each gate's block (Glorot and Bengio 2010; Saxe et al. 2014), biases 0."""
        if init == "uniform":
            bound = 1 / math.sqrt(self.hidden_size)
            for parameter in self.parameters():
                nn.init.uniform_(parameter, -bound, bound)
            return
        nn.init.zeros_(self.bias_ih)
        nn.init.zeros_(self.bias_hh)
        recurrent = nn.init.orthogonal_ if init == "orthogonal" else nn.init.xavier_uniform_
        for block in self.weight_ih.chunk(self.num_gates):
            nn.init.xavier_uniform_(block)
        for block in self.weight_hh.chunk(self.num_gates):
            recurrent(block)

    def initial_state(self, num_lanes: int) -> State:
        return tuple(
            self.weight_hh.new_zeros(num_lanes, self.hidden_size) for _ in range(self.num_states)
        )

    def gates_shut(self, *gates: float) -> Tensor:
        """A reset column (rows, 1) with one constant per gate."""
        column = self.weight_ih.new_tensor(gates).repeat_interleave(self.hidden_size)
        return column[:, None]

    def joined(
        self, inputs: Tensor, flags: list[Tensor], columns: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Inputs (lanes, time, n) and input weights (rows, n) with the flags and their columns.

        n is the input size plus the flags, padded to a multiple of 8 for the GEMM kernels.
        """
        padding = -(self.weight_ih.shape[1] + len(flags)) % 8
        extra = torch.stack(flags, dim=-1).to(inputs.dtype)
        return (
            F.pad(torch.cat([inputs, extra], dim=-1), (0, padding)),
            F.pad(torch.cat([self.weight_ih, *columns], dim=1), (0, padding)),
        )

    def forward(self, inputs: Tensor, resets: Tensor, state: State) -> tuple[Tensor, State]:
        """inputs (lanes, time, input_size), resets (lanes, time) bool, state of each lane
        -> outputs (lanes, time, hidden_size), state after the last position."""
        raise NotImplementedError


class LSTMLayer(RecurrentLayer):
    """Hochreiter and Schmidhuber 1997 with the forget gate of Gers et al. 2000.

    At a reset i, f and o are 0, so c = f * c + i * g = 0 and h = o * tanh(c) = 0.
    """

    num_gates = 4
    num_states = 2
    fewest_lanes = 64  # for which packing the weights is worth it in a single position

    def forward(self, inputs: Tensor, resets: Tensor, state: State) -> tuple[Tensor, State]:
        weights: list[Tensor] = [self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh]
        dtype = product_dtype(inputs)
        needs_grad = torch.is_grad_enabled()
        many = needs_grad or resets.shape[1] > 1 or len(resets) >= self.fewest_lanes
        if (
            many
            and self.weight_hh.dtype == torch.float32
            and kernels.compiled(inputs.device, dtype)
        ):
            hidden, h, c = CompiledLSTM.apply(inputs, resets, *state, *weights, dtype, needs_grad)
            return hidden, (h, c)
        if inputs.device.type != "cpu" or resets.any():  # an accelerator is not waited for
            column = self.gates_shut(SHUT, SHUT, 0.0, SHUT)  # i, f, g, o
            inputs, weights[0] = self.joined(inputs, [resets], [column])
        hidden, h, c = torch.lstm(
            inputs, [s[None] for s in state], weights, True, 1, 0.0, self.training, False, True
        )
        return hidden, (h[0], c[0])


class GRULayer(RecurrentLayer):
    """Cho et al. 2014, in cuDNN's form.

    At a reset r and z are 0, the input is 0 and the column cancels the input bias of n, so
    h = (1 - z) * n + z * h = n = tanh(b - b) = 0.
    """

    num_gates = 3

    def forward(self, inputs: Tensor, resets: Tensor, state: State) -> tuple[Tensor, State]:
        shut = self.gates_shut(SHUT, SHUT)  # r, z
        column = torch.cat([shut, -self.bias_ih[2 * self.hidden_size :, None]])
        inputs = inputs.masked_fill(resets[..., None], 0.0)
        inputs, weight_ih = self.joined(inputs, [resets], [column])
        weights = [weight_ih, self.weight_hh, self.bias_ih, self.bias_hh]
        hidden, h = torch.gru(
            inputs, state[0][None], weights, True, 1, 0.0, self.training, False, True
        )
        return hidden, (h[0],)


class ElmanLayer(RecurrentLayer):
    """Elman 1990: h_t = sigma(W_h h_{t-1} + W_e e_t + b), sigma any of tanh, relu, sigmoid.

    relu lands on 0 by itself. sigmoid(x) = (1 + tanh(x/2)) / 2 runs on the tanh kernel in
    t = 2h - 1, where a shut unit is t = -1, so h = 0. tanh lands on h = -1; a second column,
    fed 1 one position later, adds the row sums of W_h and so cancels W_h (-1).
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
        """Make of a tanh layer's start a sigmoid one's whose outputs are (1 + tanh) / 2 of it:
        its slope is a quarter, its mean is not 0 (Glorot and Bengio 2010)."""
        for bias in (self.bias_ih, self.bias_hh):
            bias.mul_(2)
        self.weight_ih.mul_(4 if inputs_are_hidden else 2)
        self.weight_hh.mul_(4)
        self.bias_hh.sub_(self.weight_hh.sum(1) / 2)
        if inputs_are_hidden:
            self.bias_ih.sub_(self.weight_ih.sum(1) / 2)

    def forward(self, inputs: Tensor, resets: Tensor, state: State) -> tuple[Tensor, State]:
        (h,) = state
        shut = self.gates_shut(SHUT)
        row_sums = self.weight_hh.sum(1)
        weights: list[Tensor] = [self.weight_hh, self.bias_ih, self.bias_hh]
        if self.nonlinearity == "tanh":
            after = F.pad(resets[:, :-1], (1, 0))
            inputs, weight_ih = self.joined(inputs, [resets, after], [shut, row_sums[:, None]])
            hidden, h = self.kernel(torch.rnn_tanh, inputs, h, [weight_ih, *weights])
            return hidden, (h.masked_fill(resets[:, -1:], 0.0),)
        inputs, weight_ih = self.joined(inputs, [resets], [shut])
        if self.nonlinearity == "relu":
            hidden, h = self.kernel(torch.rnn_relu, inputs, h, [weight_ih, *weights])
            return hidden, (h,)
        bias = (self.bias_ih + self.bias_hh) / 2 + row_sums / 4
        weights = [weight_ih / 2, self.weight_hh / 4, bias, torch.zeros_like(bias)]
        hidden, h = self.kernel(torch.rnn_tanh, inputs, 2 * h - 1, weights)
        return (1 + hidden) / 2, ((1 + h) / 2,)

    def kernel(
        self, function: object, inputs: Tensor, h: Tensor, weights: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        hidden, h = function(  # type: ignore[operator]
            inputs, h[None], weights, True, 1, 0.0, self.training, False, True
        )
        return hidden, h[0]
