"""Reads text from files: decompresses and decodes it, within bounds."""

import codecs
import contextlib
import difflib
import io
from collections.abc import Iterator
from encodings.aliases import aliases
from functools import partial
from pathlib import Path
from typing import IO, Any

from lmkit.corpus.finding import compression
from lmkit.errors import UserError

# Text compresses by a factor of 3 to 10, logs and tables by up to 100; gzip can reach 1,000, zstd
# and parquet far more. Small files may expand more: the result fits into memory anyway.
MAX_EXPANSION = 200
ALWAYS_ALLOWED = 64 << 20  # bytes
MAX_XZ_MEMORY = 256 << 20  # bytes; xz -9 needs 65 MiB
# A line is held in memory whole.
MAX_LINE = 256 << 20  # characters
# Python's own readers of .zst and .bz2 end silently where a stream is cut or garbage follows it.
_PYARROW = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}
_BUFFER = 1 << 20
UTF8 = "utf-8"
# Python's encodings that no text file has; some of them decode to invalid Unicode.
_NO_ENCODINGS = ("idna", "punycode", "undefined", "unicode-escape", "raw-unicode-escape", "utf-7")
# The first bytes of files that have to be read in another way, and what to do.
_BEGINNINGS = {
    codecs.BOM_UTF16_LE: "it begins as UTF-16: set data.encoding=utf-16",
    codecs.BOM_UTF16_BE: "it begins as UTF-16: set data.encoding=utf-16",
    b"PK\x03\x04": "it begins as a .zip archive or office document: unpack it or save it as text",
    b"%PDF": "it begins as a .pdf: make plain text of it, as with pdftotext",
    b"\x1f\x8b": "it begins as gzip: give its name the end .gz",
    b"\x28\xb5\x2f\xfd": "it begins as zstd: give its name the end .zst",
    b"BZh": "it begins as bzip2: give its name the end .bz2",
    b"\xfd7zXZ": "it begins as xz: give its name the end .xz",
    b"PAR1": "it begins as parquet: take data=parquet",
}


@contextlib.contextmanager
def open_bytes(path: Path) -> Iterator[IO[bytes]]:
    """The file's bytes, decompressed by its suffix as they are read, up to `MAX_EXPANSION`."""
    suffix = compression(path.name)
    try:
        if not suffix:
            with path.open("rb", buffering=_BUFFER) as stream:
                yield stream
        else:
            with _unpacked(path, suffix) as stream:
                yield io.BufferedReader(Bounded(stream, path), _BUFFER)
    except (OSError, EOFError) as error:
        problem = f"is damaged ({error})" if suffix else f"cannot be read ({error})"
        remedy = f"make the {suffix} file anew" if suffix else "check its permissions"
        raise UserError(f"{path} {problem}: {remedy}") from error


@contextlib.contextmanager
def _unpacked(path: Path, suffix: str) -> Iterator[Any]:
    if suffix == ".xz":
        with path.open("rb") as packed:
            yield _Xz(packed)
    else:
        import pyarrow

        with pyarrow.CompressedInputStream(pyarrow.OSFile(str(path)), _PYARROW[suffix]) as stream:
            yield stream


class _Xz:
    """Reads .xz streams; unlike Python's own reader, it raises if other bytes follow them."""

    def __init__(self, packed: IO[bytes]) -> None:
        try:
            import lzma
        except ImportError as error:  # a Python that was built without liblzma
            raise UserError(
                f"this Python cannot read .xz files ({error}): decompress them"
            ) from None
        self._lzma = lzma
        self._packed = packed
        self._rest = b""
        self._stream: Any = None

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._read(len(buffer))
        except self._lzma.LZMAError as error:
            raise OSError(str(error)) from None
        buffer[: len(data)] = data
        return len(data)

    def _read(self, size: int) -> bytes:
        while True:
            if self._stream is None or self._stream.needs_input:
                self._rest = self._rest or self._packed.read(_BUFFER)
                if not self._rest and self._stream is not None:
                    raise EOFError("it ends within a stream")
            if self._stream is None:
                if not self._rest:
                    return b""
                self._stream = self._lzma.LZMADecompressor(
                    self._lzma.FORMAT_XZ, memlimit=MAX_XZ_MEMORY
                )
            data: bytes = self._stream.decompress(self._rest, size)
            self._rest = b""
            if self._stream.eof:  # a stream may be padded with zeros
                self._rest = self._stream.unused_data.lstrip(b"\0")
                self._stream = None
            if data:
                return data


def known_encoding(encoding: str) -> str:
    """Python's canonical name of an encoding; raises UserError if Python does not know it."""
    if name := _encoding(encoding):
        return name
    names = sorted(filter(_encoding, {*aliases, *aliases.values()}))
    near = difflib.get_close_matches(encoding.lower().replace("-", "_"), names, n=3)
    shown = ", ".join(dict.fromkeys(name.replace("_", "-") for name in near))
    remedy = f"did you mean {shown}?" if near else "as utf-8, utf-16, latin-1, cp1252, gb18030"
    raise UserError(f"data.encoding={encoding} is no encoding of text that Python knows; {remedy}")


def _encoding(name: str) -> str | None:
    try:
        "a".encode(name)  # fails for codecs of bytes, such as base64
        known = codecs.lookup(name).name
    except (LookupError, ValueError):
        return None
    return None if known in _NO_ENCODINGS else known


def text_lines(path: Path, encoding: str = UTF8, key: str | None = None) -> Iterator[str]:
    r"""The lines of a file with their "\n"; "\r\n" becomes "\n", a leading BOM is removed.

    key: the config key that sets the encoding, for messages.
    """
    with open_bytes(path) as stream:
        text = io.TextIOWrapper(stream, encoding, newline="\n")  # ends lines at "\n" only
        try:
            for number, line in enumerate(iter(partial(text.readline, MAX_LINE + 1), ""), 1):
                if len(line) > MAX_LINE:
                    raise UserError(
                        f"{path} has a line of more than {MAX_LINE:,} characters, line {number}: "
                        "is it text? Break its lines, or leave it out"
                    )
                line = line.removeprefix("\ufeff") if number == 1 else line
                yield line[:-2] + "\n" if line.endswith("\r\n") else line
        except UnicodeError as error:
            raise _undecodable(path, encoding, key, stream.tell(), error) from None


def _undecodable(
    path: Path, encoding: str, key: str | None, num_bytes: int, error: UnicodeError
) -> UserError:
    """The error to raise if the first `num_bytes` of a file are not all in its encoding."""
    name = "UTF-8" if encoding == UTF8 else encoding
    if not isinstance(error, UnicodeDecodeError):  # utf-16 or utf-32 without a byte order mark
        ends = " or ".join(f"{key or 'encoding'}={encoding}-{order}" for order in ("le", "be"))
        return UserError(f"{path} is not {name} ({error}): without a byte order mark set {ends}")
    within = " of the decompressed text" if compression(path.name) else ""
    offset = num_bytes - len(error.object) + error.start
    remedy = "convert the file to UTF-8 or leave it out"
    if key:
        with open_bytes(path) as stream:
            beginning = stream.read(8)
        known = (each for start, each in _BEGINNINGS.items() if beginning.startswith(start))
        remedy = next(known, f"name the encoding it has with {key}, as latin-1, cp1252 or utf-16")
        remedy += ", or leave it out"
    return UserError(
        f"{path} is not {name}: byte 0x{error.object[error.start]:02x} at byte offset "
        f"{offset}{within} ({error.reason}); {remedy}"
    )


class Expansion:
    """Counts the bytes that a compressed file expands to; raises UserError if they are too many."""

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
    """A decompressing stream that raises UserError if the file expands too much."""

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
