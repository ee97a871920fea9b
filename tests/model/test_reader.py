"""The state that a reader carries follows the tokens to their device."""

import pytest
import torch

from lmkit.model.elman import Elman
from lmkit.model.fixed_window import Window
from lmkit.model.gru import GRU
from lmkit.model.reader import Reader

SIZES = {"embedding_size": 8, "hidden_size": 8}


@pytest.mark.parametrize("kind", [Elman, GRU, Window])
def test_a_state_from_another_device_goes_on_where_the_tokens_are(kind):
    """As a training that resumes on a GPU has it: checkpoints are loaded on the CPU. The device
    here is `meta`, which has no values but refuses a tensor of another device as a GPU does."""
    model = kind(50, **SIZES)
    reader = Reader(model)
    tokens = torch.zeros(3, 5, dtype=torch.long)
    reader.read(tokens, tokens.bool())
    model.to("meta")
    output = reader.read(tokens[:2].to("meta"), tokens[:2].bool().to("meta"))
    assert output.hidden.shape == (2, 5, 8)
    assert {part.device.type for layer in reader.state for part in layer} == {"meta"}
