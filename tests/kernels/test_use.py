"""What the context of a run's kernels sets, and puts back."""

import pytest
import torch

from lmkit import kernels


@pytest.mark.parametrize("wanted", ["auto", "torch", "graphs"])
def test_fp32_is_multiplied_as_such_within_the_context(wanted):
    before = torch.backends.cudnn.allow_tf32
    with kernels.use(wanted):
        assert not torch.backends.cudnn.allow_tf32
        assert kernels.graphs() == (wanted == "graphs")
    assert torch.backends.cudnn.allow_tf32 == before
    assert not kernels.graphs()
