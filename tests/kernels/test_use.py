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


def test_precisions_of_single_operators_are_put_back():
    """Beside them PyTorch refuses to read the switch of all."""
    cudnn = torch.backends.cudnn
    try:
        cudnn.rnn.fp32_precision = "ieee"
        with pytest.raises(RuntimeError, match="allow_tf32"):
            _ = cudnn.allow_tf32
        with kernels.use("torch"):
            assert (cudnn.rnn.fp32_precision, cudnn.conv.fp32_precision) == ("ieee", "ieee")
        assert (cudnn.rnn.fp32_precision, cudnn.conv.fp32_precision) == ("ieee", "tf32")
    finally:
        cudnn.rnn.fp32_precision = "tf32"
        assert cudnn.allow_tf32
