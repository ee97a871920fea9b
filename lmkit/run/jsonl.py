"""Files of JSON lines: appending to them, cutting them back, following them while they grow."""

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from zlib import crc32

from lmkit.system.files import naming, strict_json
from lmkit.system.regular_file import MAX_ROW, opened, parse_row

log = logging.getLogger(__name__)

NUM_BYTES = 1 << 20  # of a file's lines in one answer
MAX_READ = 256 << 20  # bytes of a file that are ever read: some two million rows
NUM_MARKED = 256  # bytes before a position whose checksum tells whether the file is still the same
# The answer for a file that cannot be read; the run's problems name it.
NO_ROWS = {"rows": [], "place": [0, 0], "more": False, "beyond": False, "num_damaged": 0}


class JsonLines:
    """Appends objects to a file, one per line; bytes beyond `length` are cut off first.

    `length`, in bytes, starts at 0; a process that resumes sets it with `resume`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.length = 0

    def resume(self, length: int, *, writes: bool = True) -> None:
        """Continue the file at `length`, which a checkpoint recorded; if the file is now shorter or
        damaged, after its last whole row, with a warning. writes: whether this process writes it.
        """
        data = b""
        with suppress(FileNotFoundError), self.path.open("rb") as file:
            data = file.read(length)
        self.length = data.rfind(b"\n") + 1
        if self.length == length or not writes:
            return
        log.warning(
            "%s is damaged: %d of its %d bytes are there in whole rows; the others are lost, and "
            "it goes on after these",
            *(self.path, self.length, length),
        )
        if data:
            os.truncate(self.path, self.length)

    def append(self, row: Mapping[str, Any]) -> None:
        line = strict_json(row).encode() + b"\n"
        with naming(self.path), self.path.open("ab") as file:
            self.length = min(self.length, file.tell())
            file.truncate(self.length)
            file.write(line)
        self.length += len(line)

    def rows(self) -> Iterator[dict[str, Any]]:
        """The objects up to `length`; damaged lines are left out, with a warning."""
        if not self.length:
            return
        num_damaged = 0
        with opened(self.path) as file:
            while file.tell() < self.length and (line := file.readline(MAX_ROW)):
                row = parse_row(line)
                if row is None:
                    num_damaged += 1
                else:
                    yield row
        if num_damaged:
            log.warning("%s: %d damaged lines are left out", self.path, num_damaged)

    def sync(self) -> None:
        """Flush the file to the disk, before a checkpoint relies on it."""
        if self.length:
            with self.path.open("rb") as file:
                os.fsync(file.fileno())


def read_rows(path: Path, place: Sequence[int], num_bytes: int = NUM_BYTES) -> dict[str, Any]:
    """The next whole lines, about `num_bytes` of them, of a file that is being written.

    place: [bytes read so far, checksum of the last of them]; [0, 0] is the beginning. A resumed run
    cuts off rows and writes others: if the file no longer matches `place` it is read `afresh`.
    `beyond`: whether the file is longer than is ever read. Raises DamagedError if it is no file.
    """
    offset, mark = place
    data = before = b""
    afresh, beyond = offset > 0, False
    try:
        with opened(path) as file:
            start = max(0, offset - NUM_MARKED)
            file.seek(start)
            before = file.read(max(0, offset - start))
            if start + len(before) == offset and crc32(before) == mark:
                afresh = False
            else:
                before = b""
                offset = file.seek(0)
            beyond = offset >= MAX_READ
            if not beyond and (data := file.read(num_bytes)):
                data += file.readline(MAX_ROW)
    except FileNotFoundError:
        offset = 0
    read, lines = _split(data, inside=before[-1:] not in (b"", b"\n"))
    rows = [row for row in map(parse_row, lines) if row is not None]
    return {
        "rows": rows,
        "place": [offset + len(read), crc32((before + read)[-NUM_MARKED:])],
        "afresh": afresh,
        "more": len(read) >= num_bytes,
        "beyond": beyond,
        "num_damaged": len(lines) - len(rows),
    }


def _split(data: bytes, inside: bool) -> tuple[bytes, list[bytes]]:
    """The part of the data that ends with a whole line, and its lines.

    A last line without an end may be half written and is left for later, unless it is too long to
    be a row. inside: whether the data begins inside such a long line, which was counted already.
    """
    whole, newline, rest = data.rpartition(b"\n")
    read = data if len(rest) >= MAX_ROW else whole + newline
    lines = read.removesuffix(b"\n").split(b"\n") if read else []
    return read, lines[inside:]
