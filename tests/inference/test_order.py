"""Tokens come back from lanes and windows to where they stand in the text."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from in_memory import Text, loader

from lmkit.inference.order import TextOrder


@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=8),
    protocol=st.sampled_from(["document", "sentence", "stream"]),
    num_lanes=st.integers(1, 5),
    bptt=st.integers(1, 9),
)
def test_every_token_is_numbered_once(lengths, protocol, num_lanes, bptt):
    text = Text(lengths)
    windows = loader(text, seed=None, protocol=protocol, num_lanes=num_lanes, bptt=bptt)
    order, numbers, targets = TextOrder(windows), [], []
    for window in windows:
        numbers += order.next(window.mask).tolist()
        targets += window.targets[window.mask].tolist()
    assert sorted(numbers) == [*range(text.num_tokens)]
    assert np.array_equal(text.tokens[numbers], targets)
