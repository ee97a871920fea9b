"""The lengths of windows, equal and drawn."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmkit.windows import cuts

sizes = st.tuples(st.integers(1, 5000), st.integers(1, 100)).map(lambda s: (s[0], min(s)))


@given(sizes)
def test_equal_windows_are_as_long_as_bptt_but_for_the_last(size):
    positions, bptt = size
    lengths = np.diff(cuts.equal(positions, bptt)).tolist()
    assert sum(lengths) == positions
    assert set(lengths[:-1]) <= {bptt}
    assert 1 <= lengths[-1] <= bptt


@given(sizes, st.integers(0, 9), st.integers(0, 9))
def test_drawn_windows_fill_the_positions_and_none_is_empty(size, seed, epoch):
    positions, bptt = size
    edges = cuts.drawn(positions, bptt, seed, epoch)
    assert len(edges) - 1 == cuts.num_windows(positions, bptt, drawn=True)
    assert (edges[0], edges[-1]) == (0, positions)
    assert (np.diff(edges) >= 1).all()
    assert np.array_equal(edges, cuts.drawn(positions, bptt, seed, epoch))


def test_the_lengths_are_distributed_as_merity_et_al_say():
    """A normal distribution of deviation 5 around 70, and in one of 20 windows around 35."""
    lengths = np.diff(cuts.drawn(700_000, 70, 1, 0))
    halves = lengths < 52
    assert halves.mean() == pytest.approx(0.05, abs=0.01)
    for drawn, mean in ((lengths[halves], 35), (lengths[~halves], 70)):
        assert drawn.mean() == pytest.approx(mean, rel=0.02)
        assert drawn.std() == pytest.approx(5, rel=0.1)


def test_another_epoch_and_another_seed_have_other_lengths():
    drawn = [cuts.drawn(5000, 35, seed, epoch).tolist() for seed in (1, 2) for epoch in (0, 1)]
    assert all(one != other for n, one in enumerate(drawn) for other in drawn[:n])
