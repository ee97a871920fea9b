"""Text in many files, for tests of what is prepared piece by piece."""

import json
from pathlib import Path
from typing import Any

from lmkit.corpus import Jsonl


def written(directory: Path, files: list[list[str]]) -> Path:
    for number, rows in enumerate(files):
        directory.mkdir(parents=True, exist_ok=True)
        lines = "".join(json.dumps({"text": row}) + "\n" for row in rows)
        (directory / f"{number:03d}.jsonl").write_text(lines)
    return directory


def jsonl(directory: Path, piece_bytes: int, **keys: Any) -> Jsonl:
    source = Jsonl(str(directory), **{"valid_fraction": 0, "test_fraction": 0} | keys)
    source.piece_bytes = piece_bytes
    return source
