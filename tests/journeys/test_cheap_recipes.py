"""The recipes that two cores train in ten minutes or an hour, whole: they still reach their own
numbers.

They read WikiText-2 in the directory that LMKIT_WIKITEXT2 names, or beside the repository.
"""

import json
import os
from pathlib import Path

import pytest

from lmkit import cli

BESIDE = Path(__file__).parents[3] / "shared" / "data" / "wikitext-2"
WIKITEXT2 = Path(os.environ.get("LMKIT_WIKITEXT2") or BESIDE)


# By the recipe: its text.
TEXTS = {
    "wikitext2_ten_minutes": WIKITEXT2,
    "characters_ten_minutes": WIKITEXT2 / "valid.txt",
    "wikitext2_one_hour": WIKITEXT2,
}


@pytest.mark.slow
@pytest.mark.timeout(4 * 3600)
@pytest.mark.skipif(not WIKITEXT2.is_dir(), reason="no WikiText-2: set LMKIT_WIKITEXT2 to its path")
@pytest.mark.parametrize("recipe", TEXTS)
def test_a_whole_training_passes(tmp_path: Path, recipe: str) -> None:
    text = f"data.path={TEXTS[recipe]}"
    assert cli.main(["reproduce", recipe, text, f"outputs={tmp_path}"]) == 0
    record = json.loads((tmp_path / recipe / "seed-1" / "reproduction.json").read_text())
    assert record["verdict"] == "pass"
