"""Columns of tables in memory."""

import pyarrow as pa
import pytest

from lmkit.errors import UserError
from lmkit.inference import frames


def test_columns_divided_by_another_sign():
    table = pa.table({"id;sentence": ["1;a"]})
    with pytest.raises(UserError) as error:
        frames.column(table, "sentence", "a.csv")
    assert str(error.value) == (
        "a.csv has no column 'sentence': did you mean id;sentence? it has id;sentence; its cells "
        "look divided by ';', save it with commas"
    )
