"""A residual block around a layer of any kind."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmkit.model.dropout import dropout
from lmkit.model.layer import Layer
from lmkit.model.state import State

Norm = Literal["rms_norm", "layer_norm"]
NORMS = {"rms_norm": nn.RMSNorm, "layer_norm": nn.LayerNorm}  # Zhang and Sennrich 2019; Ba et al.


class Residual(Layer):
    """x = x + cell(norm(x)); then, with `expansion`, x = x + down(gelu(up(norm(x)))): the residual
    block with post up-projection of Beck et al. 2024 (figure 10), without convolution and gate.

    Both branches end in dropout. Inputs of another size than the cell's outputs are projected to it
    first. The last block of a stack ends with a norm (Baevski and Auli 2019).

    `down` begins as torch's nn.Linear, divided by the square root of the number of branches in the
    stack, so that the sum of all does not grow with the depth (Radford et al. 2019, section 2.3).
    """

    def __init__(
        self,
        cell: Layer,
        input_size: int,
        norm: Norm = "rms_norm",
        expansion: float = 0.0,
        num_blocks: int = 1,
        is_last: bool = True,
    ) -> None:
        """expansion: inner size of the feed-forward branch, in sizes of the cell's outputs.
        num_blocks: of the stack."""
        super().__init__()
        self.cell = cell
        self.number = cell.number
        self.hidden_size = size = cell.hidden_size
        self.projection = nn.Linear(input_size, size, bias=False) if input_size != size else None
        self.norm = NORMS[norm](size, eps=1e-5)
        self.up = self.down = self.inner_norm = None
        if expansion:
            inner = max(round(expansion * size), 1)
            self.inner_norm = NORMS[norm](size, eps=1e-5)
            self.up, self.down = nn.Linear(size, inner), nn.Linear(inner, size)
            with torch.no_grad():
                for parameter in self.down.parameters():
                    parameter.div_((2 * num_blocks) ** 0.5)
        self.final_norm = NORMS[norm](size, eps=1e-5) if is_last else None
        self.dropout = 0.0
        self.shared: tuple[int, ...] = ()

    @classmethod
    def stack(
        cls,
        cells: Sequence[Layer],
        sizes: Iterable[int],
        *,
        norm: Norm,
        expansion: float,
        tied: bool,
        dropout: float,
        locked: bool,
    ) -> list[Layer]:
        """Blocks around all cells; sizes: of the inputs, then of each cell's outputs. tied: whether
        the head multiplies by the embedding. dropout: of the branches; locked: with one mask for
        all positions of a window."""
        blocks = [
            cls(cell, size, norm, expansion, len(cells), cell is cells[-1])
            for cell, size in zip(cells, sizes, strict=False)
        ]
        for block in blocks:
            block.dropout, block.shared = dropout, (1,) if locked else ()
        last = blocks[-1].final_norm
        if tied and last is not None:
            # The outputs still hold the embedding of the word that was read, whose logit would be
            # by far the largest: they begin with a length of 1.
            nn.init.constant_(last.weight, blocks[-1].hidden_size ** -0.5)
        return list(blocks)

    def initial_state(self, num_lanes: int) -> State:
        return self.cell.initial_state(num_lanes)

    def forward(self, inputs: Tensor, resets: Tensor, state: State) -> tuple[Tensor, State]:
        x = inputs if self.projection is None else self.projection(inputs).to(inputs.dtype)
        outputs, state = self.cell(self.norm(x), resets, state)
        x = x + self._dropped(outputs, "cell")
        if self.up is not None and self.down is not None and self.inner_norm is not None:
            inner = F.gelu(self.up(self.inner_norm(x)))
            x = x + self._dropped(self.down(inner), "expansion")
        return x if self.final_norm is None else self.final_norm(x), state

    def _dropped(self, branch: Tensor, name: str) -> Tensor:
        mask = f"layers.{self.number}.{name}"
        return dropout(branch, self.dropout, self.training, mask, self.shared)
