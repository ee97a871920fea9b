"""Numbers of each token of a text, as a trained model reads it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from torch import Tensor

from lmkit.inference.order import TextOrder
from lmkit.inference.trained import POSITIONS, TrainedModel
from lmkit.model import Output
from lmkit.system.progress import progress
from lmkit.windows import Tokens, Window
from lmkit.windows.lanes import Protocol


def read_rows(
    trained: TrainedModel,
    text: Tokens,
    protocol: Protocol,
    num_lanes: int,
    num_rows: int,
    measure: Callable[[Window, Output], Tensor],
    what: str,
) -> npt.NDArray[np.float32]:
    """What `measure` returns for each window, (num_rows, lanes, time), in the text's own order,
    (num_rows, tokens). what: the progress bar's name."""
    loader = trained.loader(text, protocol, num_lanes, POSITIONS)
    order, values = TextOrder(loader), np.empty((num_rows, text.num_tokens), np.float32)
    num_read = 0
    with progress(what, text.num_tokens) as advance:
        for window, rows in trained.measured(loader, measure):
            values[:, order.next(window.mask)] = rows[:, window.mask].cpu().numpy()
            num_read += window.num_targets
            advance(num_read)
    assert num_read == text.num_tokens
    return values
