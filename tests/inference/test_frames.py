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


def test_two_columns_of_one_name():
    table = pa.table([["a"], ["b"]], ["sentence", "sentence"])
    with pytest.raises(UserError, match=r"^x has two columns 'sentence': rename one$"):
        frames.column(table, "sentence", "x")


def test_a_value_that_is_missing_is_none_in_every_kind():
    pandas = pytest.importorskip("pandas")
    values = ["a", None, "b"]
    frame = pandas.DataFrame({"s": values, "n": [1.0, float("nan"), 2.0]})
    assert frames.column(frame, "s", "x") == values
    assert frames.column(frame, "n", "x") == [1.0, None, 2.0]
    assert frames.column(pa.table({"s": values}), "s", "x") == values
    assert frames.table_of([{"s": "a"}, {}, {"s": "b"}], "x").to_pydict() == {"s": values}
