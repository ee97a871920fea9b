"""What the files of other programs have no computations of."""

import pytest

from lmkit.errors import UserError
from lmkit.export.plain import cell_of
from lmkit.model import GRU, LSTM, LSTMP, LayerNormLSTM, Mogrifier

SIZES = {"embedding_size": 4, "hidden_size": 4, "num_layers": 1}


@pytest.mark.parametrize("kind", [LSTMP, LayerNormLSTM, Mogrifier])
def test_cells_that_no_client_has_are_refused(kind):
    with pytest.raises(UserError) as refused:
        cell_of(kind(5, **SIZES))
    assert str(refused.value) == (
        f"model={kind.__name__}: the exported file knows LSTM, GRU, Elman and Window, no other "
        "class"
    )


@pytest.mark.parametrize("kind", [LSTM, GRU])
def test_residual_blocks_and_zoneout_are_refused(kind):
    with pytest.raises(UserError) as refused:
        cell_of(kind(5, residual="layer_norm", **SIZES))
    assert str(refused.value) == (
        "model.residual=layer_norm: the exported file knows no residual blocks"
    )
    with pytest.raises(UserError, match="the exported file knows no layers with zoneout"):
        cell_of(kind(5, zoneout=0.1, **SIZES))
    with pytest.raises(UserError, match="the exported file knows only the outputs of the last"):
        cell_of(kind(5, sum_layers=True, **SIZES))


def test_capped_gates_are_refused_and_dropout_of_the_state_is_not():
    with pytest.raises(UserError, match=r"^model\.cap_input_gate=true: the exported file knows no"):
        cell_of(LSTM(5, cap_input_gate=True, **SIZES))
    assert cell_of(LSTM(5, state_dropout=0.5, **SIZES)) == "lstm"
