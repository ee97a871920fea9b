"""The recipe that two cores train in ten minutes, whole: it still reaches its own number.

It reads WikiText-2 in the directory that LMKIT_WIKITEXT2 names, or beside the repository.
"""

import json
import os
from pathlib import Path

import pytest

from lmkit import cli

BESIDE = Path(__file__).parents[3] / "shared" / "data" / "wikitext-2"
WIKITEXT2 = Path(os.environ.get("LMKIT_WIKITEXT2") or BESIDE)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif(not WIKITEXT2.is_dir(), reason="no WikiText-2: set LMKIT_WIKITEXT2 to its path")
def test_a_whole_training_passes(tmp_path: Path) -> None:
    recipe = "wikitext2_ten_minutes"
    assert cli.main(["reproduce", recipe, f"data.path={WIKITEXT2}", f"outputs={tmp_path}"]) == 0
    record = json.loads((tmp_path / recipe / "seed-1" / "reproduction.json").read_text())
    assert record["verdict"] == "pass"
