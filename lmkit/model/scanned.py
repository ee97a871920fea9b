"""Layers whose gates see the inputs alone, so that the recurrence is a scan over the window."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmkit.kernels.scan import linear_scan
from lmkit.model.dropout import dropout
from lmkit.model.layer import Layer, RecurrentInit, stacked


class InputLayer(Layer):
    """A layer all of whose weights are of its inputs: blocks with biases, computed for a whole
    window in one product.

    blocks: the rows of each block. weight_ih is (rows of all blocks, columns), bias_ih (rows).
    """

    def __init__(
        self, hidden_size: int, columns: int, blocks: list[int], init: RecurrentInit
    ) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.blocks = blocks
        self.weight_ih = stacked(blocks, columns)
        self.bias_ih = nn.Parameter(torch.empty(sum(blocks)))
        self.initialise(init)

    @torch.no_grad()
    def initialise(self, init: RecurrentInit) -> None:
        """`uniform` is nn.Linear's, U(-1/sqrt(columns), 1/sqrt(columns)) for everything; with a
        number, everything is uniform between minus this and this; otherwise each block is as in
        Glorot and Bengio 2010, with biases of 0."""
        if isinstance(init, str) and init != "uniform":
            nn.init.zeros_(self.bias_ih)
            for block in self.weight_ih.split(self.blocks):
                nn.init.xavier_uniform_(block)
            return
        bound = 1 / math.sqrt(self.weight_ih.shape[1]) if init == "uniform" else init
        nn.init.uniform_(self.weight_ih, -bound, bound)
        nn.init.uniform_(self.bias_ih, -bound, bound)

    def projected(self, inputs: Tensor, weight: Tensor | None = None) -> tuple[Tensor, ...]:
        """W x + b of each block (lanes, time, rows of the block), in float32 also where autocast
        multiplies in low precision. inputs: (lanes, time, columns)."""
        rows = F.linear(inputs, self.weight_ih if weight is None else weight, self.bias_ih)
        return wide(rows).split(self.blocks, dim=-1)


class ScannedLayer(InputLayer):
    """An `InputLayer` whose state h is (lanes, size) and goes on as h_t = a_t h_{t-1} + b_t."""

    def scanned(self, decay: Tensor, update: Tensor, resets: Tensor, state: Tensor) -> Tensor:
        """h of each position, from a and b, all (lanes, time, size), with zoneout (Krueger et al.
        2017): a unit that keeps its value has a = 1 and b = 0, in evaluation their mean."""
        p = self.zoneout[0] if self.zoneout else 0.0
        if p:
            updated: Tensor | float = 1 - p
            if self.training:
                mask = f"layers.{self.number}.zoneout.0"
                ones = torch.ones_like(update)  # dropout divides those that it keeps by 1 - p
                updated = (dropout(ones, p, True, mask) != 0).to(update.dtype)
            decay, update = 1 - updated * (1 - decay), updated * update
        return linear_scan(decay, update, resets, state)


def wide(tensor: Tensor) -> Tensor:
    """The tensor in float32, or in float64 as it is: what a recurrence is computed in."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def not_orthogonal(config: Mapping[str, Any], at: str) -> list[str]:
    """The mistake of a cell without recurrent matrices."""
    if config["recurrent_init"] != "orthogonal":
        return []
    return [
        f"{at}.recurrent_init=orthogonal: this cell has no recurrent matrix; "
        f"set {at}.recurrent_init=uniform or xavier"
    ]


def no_weight_dropout(config: Mapping[str, Any], at: str) -> list[str]:
    """The mistake of a cell without matrices of which a window could leave out a share."""
    if not config["weight_dropout"]:
        return []
    return [
        f"{at}.weight_dropout={config['weight_dropout']}: this cell has no recurrent matrix; "
        f"set {at}.weight_dropout=0"
    ]
