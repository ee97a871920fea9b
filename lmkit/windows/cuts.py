"""Where an epoch's lanes are cut into windows: at equal lengths, or at lengths that are drawn."""

from __future__ import annotations

import numpy as np

from lmkit.windows.lanes import Integers

# Merity et al. 2018, section 4 (arXiv:1708.02182): the mean length is bptt, or half of it with
# probability 0.05; a length is drawn from a normal distribution around it.
SHARE_OF_HALVES = 0.05
DEVIATION = 5
SHORTEST = 5


def num_windows(positions: int, bptt: int, *, drawn: bool) -> int:
    """The windows that a lane of so many positions is cut into, in every epoch."""
    if not drawn:
        return -(-positions // bptt)
    mean = bptt * (1 - SHARE_OF_HALVES / 2)
    return min(max(round(positions / mean), 1), positions)


def equal(positions: int, bptt: int) -> Integers:
    """The position at which each window begins, then the end."""
    begins = np.arange(num_windows(positions, bptt, drawn=False)) * bptt
    return np.append(begins, positions)


def drawn(positions: int, bptt: int, seed: int, epoch: int) -> Integers:
    """As `equal`, but of drawn lengths, stretched a little so that they fill the positions: the
    number of windows is the same in every epoch. A pure function of its arguments."""
    number = num_windows(positions, bptt, drawn=True)
    # The third word keeps these draws apart from those of the lanes.
    rng = np.random.default_rng([seed, epoch, 1])
    means = np.where(rng.random(number) < SHARE_OF_HALVES, bptt / 2, bptt)
    lengths = np.maximum(rng.normal(means, DEVIATION).astype(np.int64), min(SHORTEST, bptt))
    # One position for each window, and the others in proportion to its length.
    filled = np.append(0, np.cumsum(lengths)) / lengths.sum()
    return np.arange(number + 1) + np.rint(filled * (positions - number)).astype(np.int64)
