"""The temperature of the softmax, as Melis et al. 2020 tune it: p_T(w) ~ p(w) ** (1 / T).

Above 1 it makes a distribution flatter, as suits a model that is too sure of itself. Of a full
softmax the logits are divided by T. deepmind/lamb's `eval_softmax_temperature` is 1 / T.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lmkit.inference.rows import read_rows
from lmkit.inference.trained import TrainedModel
from lmkit.model import Output
from lmkit.ranges import Positive
from lmkit.windows import Tokens, Window
from lmkit.windows.lanes import Protocol


@dataclass(frozen=True)
class Temperature:
    """The setting of the temperature.

    value: T, what logits are divided by.
    """

    value: Positive


def read_at_temperatures(
    trained: TrainedModel,
    text: Tokens,
    protocol: Protocol,
    num_lanes: int,
    values: Sequence[float],
    what: str = "temperature",
) -> npt.NDArray[np.float32]:
    """The nll of each token in nats at each temperature, (values, tokens), from one reading."""

    def measure(window: Window, output: Output) -> Tensor:
        targets, parts, done = window.targets.flatten(), [], 0
        for log_prob in trained.head.log_prob(output.hidden):
            own = log_prob.gather(1, targets[done : done + len(log_prob), None])[:, 0]
            parts.append(torch.stack([(log_prob / t).logsumexp(1) - own / t for t in values]))
            done += len(log_prob)
        return torch.cat(parts, dim=1).view(len(values), *window.targets.shape)

    return read_rows(trained, text, protocol, num_lanes, len(values), measure, what)
