"""The Mogrifier LSTM: its layer and its model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lmkit.model.layer import RecurrentInit
from lmkit.model.lstm import LSTMFamily, LSTMFamilyLayer
from lmkit.model.products import Products
from lmkit.model.state import State
from lmkit.ranges import Count


class MogrifierLayer(LSTMFamilyLayer):
    """Melis et al. 2020 (equations 1 and 2): before the step of an LSTM, input and last output gate
    each other in turn, for round i from 1 to `rounds`

        x = 2 sigmoid(Q_i h) * x   (i odd)      h = 2 sigmoid(R_i x) * h   (i even)

    With `rank` above 0 each matrix is a product of two, of this inner size. At the start an element
    of Q_i or R_i has the variance 1 / columns, as in the authors' program (deepmind/lamb), so that
    a gate is about 1. With `gate_bias` each gate has a bias, from 0, which that program adds in the
    sigmoid and the equations lack.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        init: RecurrentInit = "uniform",
        rounds: int = 5,
        rank: int = 0,
        gate_bias: bool = False,
    ) -> None:
        super().__init__(input_size, hidden_size, init)
        shapes = [(input_size, hidden_size), (hidden_size, input_size)]  # of Q and of R
        self.rounds = nn.ModuleList(
            nn.ParameterList(factors(*shapes[index % 2], rank)) for index in range(rounds)
        )
        self.gate_biases = nn.ParameterList(
            torch.zeros(shapes[index % 2][0]) for index in range(rounds if gate_bias else 0)
        )

    def forward(self, inputs: Tensor, resets: Tensor, state: State) -> tuple[Tensor, State]:
        lanes, time = resets.shape
        weight = torch.cat([self.weight_ih, self.dropped("weight_hh")], dim=1)
        sums = Products(weight, (self.bias_ih + self.bias_hh).expand(lanes, time, -1))
        rounds = [
            [Products.alone(matrix, lanes, time) for matrix in matrices.parameters()]
            for matrices in self.rounds
        ]
        for matrices, bias, products in zip(self.rounds, self.gate_biases, rounds, strict=False):
            *_, last = matrices.parameters()
            products[-1] = Products(last, bias.expand(lanes, time, -1))
        xs = inputs.unbind(1)

        def step(t: int, state: State) -> State:
            x, (h, c) = xs[t], state
            for index, products in enumerate(rounds):
                gate = h if index % 2 == 0 else x
                for product in products:
                    gate = product(t, gate)
                gate = 2 * gate.sigmoid()
                x, h = (gate * x, h) if index % 2 == 0 else (x, gate * h)
            return self.lstm(sums(t, torch.cat([x, h], dim=1)).chunk(4, dim=1), c)

        return self.loop(step, resets, state)


def factors(rows: int, columns: int, rank: int) -> list[Tensor]:
    """A random matrix, or two, right and left, whose product has its variance 1 / columns."""
    if not rank:
        return [torch.randn(rows, columns) * columns**-0.5]
    std = (columns * rank) ** -0.25
    return [torch.randn(rank, columns) * std, torch.randn(rows, rank) * std]


class Mogrifier(LSTMFamily):
    """The Mogrifier LSTM (Melis et al. 2020): input and last output gate each other in turn before
    an LSTM reads them.

    rounds: how often, the input first (the paper has 5 or 6); 0 is an LSTM, whatever rank and
    gate_bias are.
    rank: inner size of the factors of the gates' matrices; 0: whole matrices (the paper has 40 to
    90).
    gate_bias: whether each gate has a bias, as in the authors' program but not in the paper.
    """

    def __init__(
        self,
        vocabulary_size: int,
        *,
        rounds: Count = 5,
        rank: Count = 0,
        gate_bias: bool = False,
        **settings: Any,
    ) -> None:
        """settings: the arguments of `LSTMFamily`."""
        self._gating = (rounds, rank, gate_bias)
        super().__init__(vocabulary_size, **settings)

    @staticmethod
    def mistakes(config: Mapping[str, Any], at: str) -> list[str]:
        """Mistakes that show only when the values are compared with one another."""
        sizes = config["hidden_sizes"] or [config["hidden_size"]]
        smallest = min(config["embedding_size"], *sizes)
        found = LSTMFamily.mistakes(config, at)
        if config["rounds"] and config["rank"] >= smallest:
            found.append(
                f"{at}.rank={config['rank']} but the smallest size is {smallest}: factors save "
                f"nothing from there on; set a rank below it, or {at}.rank=0 for whole matrices"
            )
        return found

    def make_layer(self, input_size: int, hidden_size: int, init: RecurrentInit) -> MogrifierLayer:
        return MogrifierLayer(input_size, hidden_size, init, *self._gating)
