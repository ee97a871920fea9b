"""Writes files so that they are whole or absent, whatever happens during the writing."""

import io
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any


def write_atomically(path: Path, data: bytes) -> None:
    """Write `data` to `path`; after a crash at any moment, it is there whole or the old file is."""
    with atomically(path) as file:
        file.write(data)


@contextmanager
def atomically(path: Path) -> Iterator[IO[bytes]]:
    """A file to write to piece by piece, which becomes `path` at the end of the block; if the block
    raises, nothing is left of it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with naming(path):
        try:
            with temporary.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        sync_directory(path.parent)


def write_directory(path: Path, files: Mapping[str, bytes]) -> None:
    """Write a directory of files, in the place of one that is there; it is there whole or not."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with naming(path):
        made = not path.parent.exists()
        try:
            temporary.mkdir(parents=True)
            for name, data in files.items():
                write_atomically(temporary / name, data)
            if path.exists():
                shutil.rmtree(path)
            temporary.rename(path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
            if made:
                with suppress(OSError):  # something was written into it
                    path.parent.rmdir()
        sync_directory(path.parent)


def figure_bytes(figure: Any) -> bytes:
    """A matplotlib figure as a PNG file."""
    png = io.BytesIO()
    figure.savefig(png, format="png")
    return png.getvalue()


def write_figure(path: Path, figure: Any) -> None:
    """Write a matplotlib figure as a PNG file, as `write_atomically` does."""
    write_atomically(path, figure_bytes(figure))


def write_over(path: Path, data: bytes) -> None:
    """Overwrite a file with a small text in one write, for a disk without room for both.

    If the text is shorter than the file, spaces fill the rest.
    """
    with naming(path), path.open("r+b", buffering=0) as file:
        file.write(data.ljust(os.fstat(file.fileno()).st_size))
        os.fsync(file.fileno())


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Make an OSError in the block name `path`: a write's names no file, or a temporary one."""
    try:
        yield
    except OSError as error:
        error.filename = str(path)
        raise


def sync_directory(path: Path) -> None:
    """Make the renames within a directory survive a power cut."""
    directory = os.open(path, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def strict_json(value: Any, indent: int | None = None) -> str:
    """JSON that every reader accepts: a number that is not finite becomes null."""
    return json.dumps(_finite(value), indent=indent, ensure_ascii=False, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
