"""Quasi-recurrent networks: their layer and their model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Le
from torch import Tensor

from lmkit.kernels.matmul import product_dtype
from lmkit.model.layer import RecurrentInit
from lmkit.model.recurrent import Recurrent
from lmkit.model.scanned import ScannedLayer, not_orthogonal
from lmkit.model.state import State

Pooling = Literal["f", "fo", "ifo"]
OneOrTwo = Annotated[int, Ge(1), Le(2)]


class QRNNLayer(ScannedLayer):
    """Bradbury et al. 2017, equations 1 to 5: a convolution over `window` inputs gives the
    candidate z = tanh(.) and the gates f, o and i = sigmoid(.), and a pooling goes over time:

        f: h_t = f h_{t-1} + (1 - f) z;  fo: c_t = f c_{t-1} + (1 - f) z, h = o c;
        ifo: c_t = f c_{t-1} + i z, h = o c.

    weight_ih has blocks z, f, o, i, those that the pooling has; its columns are the input and, with
    window=2, then the input before it, which is zero at the start of a document. The state is c,
    h in f-pooling, and with window=2 the last input.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        init: RecurrentInit = "uniform",
        window: int = 1,
        pooling: Pooling = "fo",
    ) -> None:
        blocks = [hidden_size] * (1 + len(pooling))
        super().__init__(hidden_size, window * input_size, blocks, init)
        self.window = window
        self.num_states = window
        self.pooling = pooling

    def initial_state(self, num_lanes: int) -> State:
        """The zero state: c (lanes, hidden_size) and with window=2 an input."""
        sizes = [self.hidden_size, self.weight_ih.shape[1] // 2][: self.window]
        return tuple(self.weight_ih.new_zeros(num_lanes, size) for size in sizes)

    def forward(self, inputs: Tensor, resets: Tensor, state: State) -> tuple[Tensor, State]:
        before: State = ()
        seen = inputs
        if self.window == 2:
            # No word stands at a reset, so the convolution sees none across it.
            words = inputs.masked_fill(resets[..., None], 0)
            earlier = torch.cat([state[1][:, None].to(words.dtype), words[:, :-1]], dim=1)
            seen = torch.cat([inputs, earlier], dim=-1)
            before = (words[:, -1].to(state[1].dtype, copy=True),)
        z, f, *others = self.projected(seen, self.dropped("weight_ih"))
        keep = f.sigmoid()
        new = others[1].sigmoid() if self.pooling == "ifo" else 1 - keep
        cells = self.scanned(keep, new * z.tanh(), resets, state[0])
        hidden = others[0].sigmoid() * cells if others else cells
        return hidden.to(product_dtype(inputs)), (cells[:, -1].clone(), *before)


class QRNN(Recurrent):
    """Quasi-recurrent networks (Bradbury et al. 2017): convolutions, and gates that pool over time.
    weight_dropout leaves out elements of the convolutions, as in Merity et al. 2018; zoneout is the
    paper's, on the forget gate.

    first_window: inputs that the convolution of the first layer sees; 1: the input itself.
    window: those of the other layers.
    pooling: the gates beside the candidate: forget, output, input.
    """

    def __init__(
        self,
        vocabulary_size: int,
        *,
        first_window: OneOrTwo = 2,
        window: OneOrTwo = 1,
        pooling: Pooling = "fo",
        **settings: Any,
    ) -> None:
        """settings: the arguments of `Recurrent`."""
        self.windows = [first_window]  # of each layer that is made, and the next one
        self.window = window
        self.pooling = pooling
        super().__init__(vocabulary_size, **settings)

    @staticmethod
    def mistakes(config: Mapping[str, Any], at: str) -> list[str]:
        """Mistakes that show only when the values are compared with one another."""
        return Recurrent.mistakes(config, at) + not_orthogonal(config, at)

    def make_layer(self, input_size: int, hidden_size: int, init: RecurrentInit) -> QRNNLayer:
        self.windows.append(self.window)
        return QRNNLayer(input_size, hidden_size, init, self.windows[-2], self.pooling)
