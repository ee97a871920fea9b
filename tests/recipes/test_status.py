"""The status of a recipe that has several runs: the best of their records, or the newest run."""

import json

import pytest

from lmkit.recipes.status import statuses

CONFIG = {"name": "tiny", "trainer": {"max_epochs": 4}}


def record(verdict: str) -> str:
    return json.dumps({"verdict": verdict})


@pytest.mark.parametrize(
    ("records", "word", "run"),
    [
        (["", ""], "begun", "tiny/1"),
        ([record("pass"), record("pass")], "reproduced", "tiny/1"),
        ([record("pass"), record("fail"), ""], "reproduced", "tiny/0"),
        ([record("fail"), record("cut short")], "failed", "tiny/0"),
        ([record("other text"), record("other settings")], "other text", "tiny/0"),
        ([record("cut short"), "{"], "cut short", "tiny/0"),
        ([record("unheard of"), "{"], "begun", "tiny/1"),
    ],
)
def test_the_best_record_counts_and_of_equals_the_newest(tmp_path, records, word, run):
    """records: the text of each run's, the oldest run's first; empty if there is none."""
    for day, text in enumerate(records, 1):
        path = tmp_path / "tiny" / str(day - 1)
        path.mkdir(parents=True)
        (path / "config.yaml").write_text("{}")
        (path / "status.json").write_text(json.dumps({"started": f"2026-01-0{day}T00:00:00+00:00"}))
        if text:
            (path / "reproduction.json").write_text(text)
    found = statuses({"tiny": CONFIG}, tmp_path)["tiny"]
    assert (found.word, found.run) == (word, run)
