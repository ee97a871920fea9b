"""Cells that no exported file computes are refused by name, before anything is written."""

import pytest

from lmkit.errors import UserError
from lmkit.export.plain import cell_of
from lmkit.model import MLSTM, QRNN, SLSTM, MinGRU, MinLSTM


@pytest.mark.parametrize("cell", [QRNN, MinGRU, MinLSTM, SLSTM, MLSTM])
def test_the_exports_do_not_take_a_cell_for_another(cell):
    refused = f"model={cell.__name__}: the exported file knows LSTM, GRU, Elman and Window"
    with pytest.raises(UserError, match=refused):
        cell_of(cell(10, embedding_size=4, hidden_size=4))
