"""What sLSTM and mLSTM share: units in heads, their normalisation, and what these cells refuse."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmkit.model.recurrent import Recurrent
from lmkit.ranges import Size


def head_mistakes(config: Mapping[str, Any], at: str) -> list[str]:
    """The mistake of layers that do not divide into heads."""
    sizes = config["hidden_sizes"]
    if sizes:
        sized = [(f"{at}.hidden_sizes", size) for size in sizes]
    else:
        sized = [(f"{at}.hidden_size", config["hidden_size"])] * config["num_layers"]
        if config["tie_weights"]:
            sized[-1] = (f"{at}.embedding_size", config["embedding_size"])
    heads = config["num_heads"]
    wrong = dict.fromkeys(f"{key}: {size}" for key, size in sized if size % heads)
    if not wrong:
        return []
    return [
        f"{at}.num_heads={heads} does not divide the size of a layer ({', '.join(wrong)}): set "
        f"{at}.num_heads to a divisor, or another size"
    ]


def no_zoneout(config: Mapping[str, Any], at: str) -> list[str]:
    """The mistake of a cell whose tensors of the state have no meaning one by one."""
    if not config["zoneout"]:
        return []
    return [
        f"{at}.zoneout={config['zoneout']}: memory and normaliser of this cell have a scale that "
        f"changes with each position, so a unit cannot keep the value of one; set {at}.zoneout=0"
    ]


class MultiHead(Recurrent):
    """A stack of layers that are divided into heads.

    num_heads: parts of each layer that are independent of one another within it.
    head_norm: whether each head's outputs are normalised, as in the paper's blocks.
    """

    def __init__(
        self,
        vocabulary_size: int,
        *,
        num_heads: Size = 2,
        head_norm: bool = True,
        **settings: Any,
    ) -> None:
        """settings: the arguments of `Recurrent`."""
        self.num_heads = num_heads
        self.head_norm = head_norm
        super().__init__(vocabulary_size, **settings)

    @staticmethod
    def mistakes(config: Mapping[str, Any], at: str) -> list[str]:
        """Mistakes that show only when the values are compared with one another."""
        return [
            *Recurrent.mistakes(config, at),
            *head_mistakes(config, at),
            *no_zoneout(config, at),
        ]


class HeadNorm(nn.Module):
    """The normalisation of each head's units by themselves (Wu and He 2018), with a factor for
    each unit; in float32.

    Factors begin at hidden_size^(-1/4): by a tied matrix, whose variance is hidden_size^(-1/2),
    logits then have unit scale, as with other cells. With 1 the loss would begin far above.
    """

    def __init__(self, hidden_size: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.weight = nn.Parameter(torch.full((hidden_size,), hidden_size**-0.25))

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden (lanes, time, hidden_size) -> the same shape."""
        flat = F.group_norm(hidden.flatten(0, 1), self.num_heads, self.weight)
        return flat.view_as(hidden)
