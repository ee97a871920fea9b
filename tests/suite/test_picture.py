"""What a result looks like: the picture's points, and the table's cells."""

import pytest
from rich.console import Console

from lmkit.suite.picture import draw
from lmkit.suite.report import table


def accuracy(value):
    counts = {"num_items": 1000, "num_ties": 3, "num_unknown": 250}
    return {"accuracy": value, "low": value - 0.01, "high": value + 0.02, **counts}


def run(name, shift):
    return {
        "run": name,
        "checkpoint": "best",
        "overall": accuracy(0.5 + shift),
        "levels": {"field": {"syntax": accuracy(0.6 + shift)}},
        "groups": {g: accuracy(v + shift) for g, v in (("b_1", 0.6), ("a", 0.4), ("c", 0.3))},
        "sentences_per_second": 1234.5,
    }


@pytest.fixture
def result():
    return {
        "runs": [run("tiny/one", 0.0), run("tiny/two", 0.2)],
        "levels": {"field": {"b_1": "syntax", "c": "syntax"}},
        "references": {
            "gpt2": {
                "overall": 0.83,
                "levels": {"field": {"syntax": 0.8}},
                "groups": {"b_1": 0.8, "a": 0.9, "c": 0.7},
            }
        },
        "is_pairs": True,
    }


def test_the_picture_has_a_row_for_each_group_under_its_label(result):
    (axes,) = draw(result).axes
    labels = [tick.get_text() for tick in axes.get_yticklabels()]
    assert labels == ["overall", "a", "syntax", "b 1", "c"]
    points = [line.get_xdata() for line in axes.lines if len(line.get_xdata()) == 5]
    assert list(points[0]) == pytest.approx([0.5, 0.4, 0.6, 0.6, 0.3])
    assert list(points[1]) == pytest.approx([0.7, 0.6, 0.8, 0.8, 0.5])
    published = [c.get_offsets()[:, 0] for c in axes.collections if len(c.get_offsets()) == 5]
    assert list(published[0]) == pytest.approx([0.83, 0.9, 0.8, 0.8, 0.7])
    assert any(list(line.get_xdata()) == [0.5, 0.5] for line in axes.lines)  # chance
    names = [text.get_text() for text in draw(result).legends[0].get_texts()]
    assert sorted(names) == ["gpt2 (published)", "tiny/one (best)", "tiny/two (best)"]


def test_formulas_have_no_line_of_chance(result):
    (axes,) = draw({**result, "is_pairs": False}).axes
    assert not any(list(line.get_xdata()) == [0.5, 0.5] for line in axes.lines)


def test_the_table_has_a_column_for_each_run(result, capsys):
    Console(width=120).print(table(result))
    rows = [
        [cell.strip() for cell in line.split("│")[1:-1]]
        for line in capsys.readouterr().out.splitlines()
        if line.startswith("│")
    ]
    assert rows == [
        ["overall", "50.0 (49.0–52.0)", "70.0 (69.0–72.0)", "83.0"],
        ["field", "", "", ""],
        ["syntax", "60.0 (59.0–62.0)", "80.0 (79.0–82.0)", "80.0"],
        ["group", "", "", ""],
        ["b_1", "60.0 (59.0–62.0)", "80.0 (79.0–82.0)", "80.0"],
        ["a", "40.0 (39.0–42.0)", "60.0 (59.0–62.0)", "90.0"],
        ["c", "30.0 (29.0–32.0)", "50.0 (49.0–52.0)", "70.0"],
        ["items", "1,000", "1,000", ""],
        ["ties (counted as wrong)", "3", "3", ""],
        ["items with unknown words", "25.0%", "25.0%", ""],
        ["sentences per second", "1,234", "1,234", ""],
    ]
