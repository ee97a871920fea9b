"""The page of results: which record it keeps, and the numbers by other methods."""

import pytest

from lmkit.recipes import page

RECORD = {"recipe": "tiny", "seed": 1}


@pytest.mark.parametrize(
    ("before", "now", "stays"),
    [
        ("pass", "other settings", True),
        ("fail", "cut short", True),
        ("pass", "fail", False),
        ("fail", "pass", False),
        ("other text", "cut short", False),
    ],
)
def test_only_a_whole_training_replaces_a_whole_one(tmp_path, before, now, stays):
    path = tmp_path / "page.md"
    first, second = (
        {**RECORD, "run": f"tiny/{n}", "verdict": verdict}
        for n, verdict in enumerate((before, now))
    )
    assert page.update(path, {}, first) is None
    said = f"{path} keeps the whole training tiny/0 ({before})" if stays else None
    assert page.update(path, {}, second) == said
    assert page.read_records(tmp_path / "page.json") == {"tiny": first if stays else second}


@pytest.mark.parametrize(
    ("ours", "shown"),
    [
        ({"valid": 8.25, "test": None}, " (ours 8.25 / -)"),
        ({"valid": None, "test": 8.5}, " (ours - / 8.50)"),
        ({"valid": None, "test": None}, ""),
    ],
)
def test_ours_by_another_method_stands_beside_the_papers(ours, shown):
    facts = {"source": "nobody", "text": "some", "cost": "a moment"}
    rows = [
        {"number": f"{split}, dynamic evaluation", "protocol": "stream", "ours": number}
        for split, number in ours.items()
    ]
    cost = {"seconds": None, "tokens_per_second": None, "hardware": "Core", "precision": "bf16"}
    record = {**RECORD, "run": "tiny/0", "verdict": "pass", "rows": rows, "cost": cost}
    recipe = {"recipe": {**facts, "further": {"dynamic_evaluation": [None, 9.5]}}}
    text = page.rendered({"tiny": recipe}, {"tiny": record})
    assert f"| a moment | dynamic evaluation - / 9.50{shown} |\n" in text
