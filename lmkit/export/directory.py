"""A directory that is written whole or not at all."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lmkit.errors import UserError


@contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """A directory to write into, which becomes `path` at the end of the block.

    Raises UserError if something is at `path`, but for an empty directory.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"path={path} is there already, and is no empty directory: give another")
    path.parent.mkdir(parents=True, exist_ok=True)
    directory = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        yield directory
        directory.chmod(0o755)
        for file in directory.iterdir():
            file.chmod(0o644)
        directory.rename(path)
    except BaseException:
        shutil.rmtree(directory, ignore_errors=True)
        raise


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write values for people to read too."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
