"""Where the tokens that a loader's windows hand out stand in the text."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from torch import Tensor

from lmkit.windows import WindowLoader

Integers = npt.NDArray[np.int64]


class TextOrder:
    """The numbers of the tokens of windows, which must be asked for window by window, in order."""

    def __init__(self, loader: WindowLoader) -> None:
        lanes = loader.lanes(0)
        ends = np.cumsum(lanes.unit_lengths)
        # The numbers of the tokens as the lanes read them, laid end to end.
        self._numbers = np.arange(ends[-1]) + np.repeat(
            lanes.unit_starts + lanes.unit_lengths - ends, lanes.unit_lengths
        )
        # Where in this the next window of each lane begins.
        self._begins = np.concatenate([[0], ends])[lanes.lane_units[:-1]]

    def next(self, mask: Tensor) -> Integers:
        """mask: that of the next window -> the numbers of its tokens, in the order of
        `targets[mask]`."""
        counts = mask.sum(dim=1).cpu().numpy()
        begins = self._begins[: len(counts)]
        pairs = zip(begins, counts, strict=True)
        numbers = np.concatenate([self._numbers[begin : begin + n] for begin, n in pairs])
        self._begins[: len(counts)] += counts
        return numbers
