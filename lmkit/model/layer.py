"""What a recurrent layer is, with an exact reset in mid-sequence, on native kernels or without.

A layer without a native kernel is its `step`, and a loop over positions zeroes the state.

The native kernels cannot zero the state inside a sequence. At a reset position the gates are
forced instead: one more input column, fed 1 there and 0 elsewhere, whose constant weights shut
every path from the past. The column is joined after dropout and is never a parameter.

States are tuples of (lanes, hidden_size) tensors. The output at a reset position has no meaning.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmkit.errors import UserError
from lmkit.kernels.matmul import product_dtype
from lmkit.model.dropout import dropout, dropout_of_weight
from lmkit.model.state import State
from lmkit.ranges import Positive

RecurrentInit = Literal["uniform", "xavier", "orthogonal"] | Positive

Kernel = Callable[..., tuple[Tensor, ...]]  # torch.lstm and its like

SHUT = -1e4  # its sigmoid and relu are exactly 0, its tanh exactly -1; fits in half precision


def draw_matrix(matrix: Tensor, init: RecurrentInit) -> None:
    """Let a matrix (rows, columns) begin as `recurrent_init` says: `uniform` is U(-1/sqrt(columns),
    1/sqrt(columns)), a number U(-number, number)."""
    if init == "orthogonal":
        nn.init.orthogonal_(matrix)
    elif init == "xavier":
        nn.init.xavier_uniform_(matrix)
    else:
        bound = matrix.shape[1] ** -0.5 if init == "uniform" else init
        nn.init.uniform_(matrix, -bound, bound)


def stacked(blocks: Sequence[int], columns: int) -> nn.Parameter:
    """A matrix, not yet drawn, of one block for each gate on top of each other. blocks: the rows of
    each; the matrix has them as an attribute, for optimisers that take a gate by itself."""
    matrix = nn.Parameter(torch.empty(sum(blocks), columns))
    matrix.blocks = list(blocks)  # type: ignore[attr-defined]
    return matrix


class Layer(nn.Module):
    """One layer of a stack. `Recurrent` sets what follows when it has made the layer.

    number: of the layer in its stack, from 0; it names the layer's masks.
    weight_dropout: share of the elements of its recurrent matrices that a window leaves out.
    zoneout: for each tensor of the state, the share of its units that keep their value at a
    position; empty without zoneout.
    """

    hidden_size: int
    num_states = 1  # tensors of the state
    number = 0
    weight_dropout = 0.0
    zoneout: tuple[float, ...] = ()

    def initial_state(self, num_lanes: int) -> State:
        """The zero state: tensors whose dimension 0 is the lane."""
        raise NotImplementedError

    def forward(self, inputs: Tensor, resets: Tensor, state: State) -> tuple[Tensor, State]:
        """inputs (lanes, time, input_size), resets (lanes, time) bool, state of each lane
        -> outputs (lanes, time, hidden_size), state after the last position; at a reset it is 0."""
        raise NotImplementedError

    def dropped(self, name: str) -> Tensor:
        """The recurrent matrix of a name, in training with other elements left out in each window
        (weight drop: Merity et al. 2018, section 2; DropConnect: Wan et al. 2013)."""
        mask = f"layers.{self.number}.{name}"
        return dropout_of_weight(getattr(self, name), self.weight_dropout, self.training, mask)


class RecurrentLayer(Layer):
    """One layer of a recurrent network, to be derived from for each kind of cell.

    A subclass says of itself how many blocks of weights it has, `num_gates`, each with biases, and
    how many tensors its state has, `num_states`; and defines `step`, or, over a native kernel,
    `forward`. weight_ih is (num_gates * hidden_size, input_size), weight_hh
    (num_gates * hidden_size, hidden_size), bias_ih and bias_hh (num_gates * hidden_size).
    """

    num_gates: int
    state_dropout = 0.0  # share of its outputs that its own next positions do not read in a window

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        init: RecurrentInit = "uniform",
        num_units: int | None = None,
    ) -> None:
        """num_units: rows of each block, if not hidden_size."""
        super().__init__()
        self.hidden_size = hidden_size
        self.num_units = num_units or hidden_size
        rows = self.num_gates * self.num_units
        blocks = [self.num_units] * self.num_gates
        self.weight_ih = stacked(blocks, input_size)
        self.weight_hh = stacked(blocks, hidden_size)
        self.bias_ih = nn.Parameter(torch.empty(rows))
        self.bias_hh = nn.Parameter(torch.empty(rows))
        self.initialise(init)

    @torch.no_grad()
    def initialise(self, init: RecurrentInit) -> None:
        """`uniform` is PyTorch's own, U(-1/sqrt(hidden), 1/sqrt(hidden)) for everything; the others
        fill each gate's block (Glorot and Bengio 2010; Saxe et al. 2014), with biases of 0. With a
        number, everything is uniform between minus this and this."""
        if not isinstance(init, str):
            for parameter in self.parameters():
                nn.init.uniform_(parameter, -init, init)
            return
        if init == "uniform":
            bound = 1 / math.sqrt(self.num_units)
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
        """The zero state: `num_states` tensors (lanes, hidden_size)."""
        return tuple(
            self.weight_hh.new_zeros(num_lanes, self.hidden_size) for _ in range(self.num_states)
        )

    def gates_shut(self, *gates: float) -> Tensor:
        """A reset column (rows, 1) with one constant per gate."""
        size = (self.num_units, 1)
        return torch.cat([self.weight_ih.new_full(size, gate) for gate in gates])

    def joined(
        self, inputs: Tensor, flags: list[Tensor], columns: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Inputs (lanes, time, n) and input weights (rows, n), extended by flags and their columns.

        inputs: (lanes, time, input_size). flags: (lanes, time) each. columns: (rows, 1) each.
        n is the input size plus the flags, padded to a multiple of 8 for the GEMM kernels.
        """
        padding = -(self.weight_ih.shape[1] + len(flags)) % 8
        extra = torch.stack(flags, dim=-1).to(inputs.dtype)
        return (
            F.pad(torch.cat([inputs, extra], dim=-1), (0, padding)),
            F.pad(torch.cat([self.weight_ih, *columns], dim=1), (0, padding)),
        )

    def native(
        self, kernel: Kernel, inputs: Tensor, state: State, weights: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        """One of PyTorch's recurrent kernels over inputs (lanes, time, n): outputs and next state.

        On CUDA it computes in autocast's dtype. Autocast itself takes fp16 even where it is told
        bf16 (PyTorch's cudnn/RNN.cpp), in which small gradients become zero without a loss scaler.
        """

        def run(inputs: Tensor, state: Sequence[Tensor], weights: Sequence[Tensor]) -> Any:
            before = [part[None] for part in state]
            start = before if len(before) > 1 else before[0]
            return kernel(inputs, start, weights, True, 1, 0.0, self.training, False, True)

        if inputs.device.type == "cuda":
            dtype = product_dtype(inputs)
            # In one piece of memory, of which cuDNN needs no copy.
            flat = torch.cat([weight.flatten() for weight in weights]).to(dtype)
            pieces = flat.split([weight.numel() for weight in weights])
            weights = [piece.view_as(weight) for piece, weight in zip(pieces, weights, strict=True)]
            with torch.autocast("cuda", enabled=False):
                outputs, *after = run(inputs.to(dtype), [s.to(dtype) for s in state], weights)
        else:
            outputs, *after = run(inputs, state, weights)
        return outputs, *(part[0] for part in after)

    def step(self, inputs: Sequence[Tensor], weights: Sequence[Tensor], state: State) -> State:
        """The state after one position, whose first tensor, h, is the layer's output.

        For each gate, inputs has W x + b, (lanes, hidden_size), and weights its part of weight_hh,
        (hidden_size, hidden_size). state: `num_states` tensors (lanes, hidden_size).
        """
        raise NotImplementedError

    def _check(self, before: State, after: object) -> None:
        """Raise UserError if a step makes another state of one than such a state."""

        def described(state: object) -> str:
            if not isinstance(state, tuple):
                return f"a {type(state).__name__}"
            shapes = [tuple(each.shape) if isinstance(each, Tensor) else each for each in state]
            return f"a tuple of {', '.join(map(str, shapes)) or 'nothing'}"

        if (found := described(after)) != (expected := described(before)):
            raise UserError(
                f"{type(self).__name__}.step returned {found}, expected {expected}: its "
                f"num_states={self.num_states} tensors (lanes, hidden_size)"
            )

    def forward(self, inputs: Tensor, resets: Tensor, state: State) -> tuple[Tensor, State]:
        """As `Layer` says: position by position, unless a subclass knows a faster way."""
        projected = F.linear(inputs, self.weight_ih, self.bias_ih + self.bias_hh)
        gates = [gate.unbind(1) for gate in projected.chunk(self.num_gates, dim=-1)]
        weights = self.dropped("weight_hh").chunk(self.num_gates)

        def step(t: int, state: State) -> State:
            return self.step([gate[t] for gate in gates], weights, state)

        return self.loop(step, resets, state)

    def loop(
        self, step: Callable[[int, State], State], resets: Tensor, state: State
    ) -> tuple[Tensor, State]:
        """What `forward` returns, by `step`: from a position and the state before it to the state
        after it; with zoneout, dropout of the state and resets."""
        zoned = self._updated(resets, state)
        mask = self._state_mask(state[0])
        # On an accelerator, which it would be to wait for, every position is taken for a reset.
        on_cpu = resets.device.type == "cpu"
        has_reset = resets.any(0).tolist() if on_cpu else [True] * resets.shape[1]
        outputs: list[Tensor] = []
        for t, reset in enumerate(resets[..., None].unbind(1)):
            before = state
            state = step(t, state if mask is None else (state[0] * mask, *state[1:]))
            if not outputs:
                self._check(before, state)
            if zoned:
                state = tuple(
                    new.where(part[:, t], old)
                    if isinstance(part, Tensor)
                    else old + part * (new - old)
                    for part, old, new in zip(zoned, before, state, strict=True)
                )
            if has_reset[t]:
                state = tuple(tensor.masked_fill(reset, 0.0) for tensor in state)
            outputs.append(state[0])
        return torch.stack(outputs, dim=1), state

    def _state_mask(self, outputs: Tensor) -> Tensor | None:
        """What the outputs (lanes, hidden_size) of a window are multiplied with where the layer
        itself reads them, the same at all positions (Gal and Ghahramani 2016); None: by nothing."""
        if not (self.training and self.state_dropout):
            return None
        name = f"layers.{self.number}.state"
        return dropout(torch.ones_like(outputs), self.state_dropout, True, name)

    def _updated(self, resets: Tensor, state: State) -> list[Tensor | float]:
        """Zoneout (Krueger et al. 2017): for each tensor of the state, which units a position
        updates, bool (lanes, time, hidden_size); in evaluation the share of them."""
        if not any(self.zoneout):
            return []
        if not self.training:
            return [1 - p for p in self.zoneout]
        names = [f"layers.{self.number}.zoneout.{index}" for index in range(len(state))]
        sizes = [(*resets.shape, part.shape[1]) for part in state]
        return [
            dropout(part.new_ones(size), p, True, name) != 0
            for part, size, p, name in zip(state, sizes, self.zoneout, names, strict=True)
        ]
