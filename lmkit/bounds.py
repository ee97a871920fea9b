"""How much a file may become in memory: unpacked, as a line, as a document."""

import io
from pathlib import Path
from typing import Any

from lmkit.errors import UserError

# Text packs by 3 to 10, logs and tables by up to 100; gzip can by 1,000, zstd and parquet by far
# more. Small files may: what they become fits into memory anyway.
MAX_EXPANSION = 200
ALWAYS_ALLOWED = 64 << 20  # bytes
MAX_XZ_MEMORY = 256 << 20  # bytes; xz -9 needs 65 MiB
# Lines and documents are held in memory whole; the Bible has 4 MiB, Wikipedia's longest page 1.
MAX_LINE = 256 << 20  # characters
MAX_DOCUMENT = 1 << 30  # characters


class Expansion:
    """What a packed file has become so far; raises UserError when it is beyond all proportion."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.packed = path.stat().st_size
        self.size = 0

    def add(self, num_bytes: int) -> None:
        self.size += num_bytes
        if self.size > max(ALWAYS_ALLOWED, MAX_EXPANSION * self.packed):
            raise UserError(
                f"{self.path} has {self.packed:,} bytes and expands to more than {self.size:,}, "
                f"over {MAX_EXPANSION} times as many: text does not, a bomb does; if it is meant, "
                "decompress it yourself"
            )


class Bounded(io.RawIOBase):
    """A decompressing stream that stops where the file expands beyond all proportion."""

    def __init__(self, stream: Any, path: Path) -> None:
        self._stream = stream
        self._expansion = Expansion(path)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        num_bytes: int = self._stream.readinto(buffer)
        self._expansion.add(num_bytes)
        return num_bytes

    def tell(self) -> int:
        """The number of bytes read."""
        return self._expansion.size


class TooLongError(UserError):
    """A document that does not end; the message goes on from the name of its file."""


class Lines:
    """The lines of a document so far, the first of which has the number `first`."""

    def __init__(self, first: int) -> None:
        self.first = first
        self.lines: list[str] = []
        self._size = 0

    def add(self, line: str) -> None:
        self.lines.append(line)
        self._size += len(line)
        if self._size > MAX_DOCUMENT:
            raise TooLongError(
                f"has a document of more than {MAX_DOCUMENT:,} characters, from line "
                f"{max(self.first, 1)} on: cut it finer with data.unit"
            )

    def text(self) -> str:
        return "".join(self.lines)
