"""A shard of token ids on disk: memory-mapped, checksummed, complete once it has a manifest."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from lmkit.errors import UserError, cannot_write
from lmkit.system.files import write_atomically
from lmkit.system.regular_file import MAX_MANIFEST, opened, read_bytes
from lmkit.tokenizer import Encoded, Tokenizer

FORMAT = "lmkit shard 1"
MANIFEST = "manifest.json"
POSITIONS = ("document_ends", "line_ends", "document_bytes", "document_id_ends")
FILES = ("tokens", *POSITIONS, "document_ids")
DTYPES = ("<u2", "<u4")
CHUNK = 1 << 22  # tokens that are checked at a time
# The exceptions of reading a file that is not a manifest, or a hostile one.
NOT_ONE = (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError)


class Shard:
    """A run of a split's documents as token ids, read only.

    sha256: of all its content. tokenizer: hash of the tokenizer that made it. read: how many
    documents of each split, and empty ones, its text had. num_bytes: of its text in UTF-8.
    """

    def __init__(self, directory: Path, manifest: dict[str, Any]) -> None:
        self.directory = directory
        self.dtype = np.dtype(manifest["dtype"])
        self.num_tokens: int = manifest["num_tokens"]
        self.num_documents: int = manifest["num_documents"]
        self.num_lines: int = manifest["num_lines"]
        self.num_bytes: int = manifest["num_bytes"]
        self.num_unknown: int = manifest["num_unknown"]
        self.tokenizer: str = manifest["tokenizer"]
        self.vocabulary_size: int = manifest["vocabulary_size"]
        self.by_line: bool = manifest.get("by_line", False)
        self.read: dict[str, int] = manifest["read"]
        self.sha256 = hashlib.sha256(as_json(manifest)).hexdigest()

    def map(self, name: str) -> npt.NDArray[Any]:
        """Map one of its arrays: `tokens` (num_tokens,) uint16 or uint32, the exclusive token
        positions `document_ends` (num_documents,) or `line_ends` (num_lines,), `document_bytes`."""
        file = _file(self.directory, name)
        dtype = self.dtype if name == "tokens" else np.dtype("<u8")
        return np.memmap(file, dtype, "r") if file.stat().st_size else np.empty(0, dtype)

    @classmethod
    def open(cls, directory: Path, verify: bool = False) -> Shard:
        """Open a shard after checking the sizes of its files, or with `verify` all their bytes."""
        path = Path(directory) / MANIFEST
        try:
            manifest = json.loads(read_bytes(path, MAX_MANIFEST))
            if manifest["format"] != FORMAT or set(manifest["files"]) != set(FILES):
                raise ValueError(f"not of the format {FORMAT!r}")
            if manifest["dtype"] not in DTYPES:
                raise ValueError(f"its tokens are {manifest['dtype']!r}")
            for name, record in manifest["files"].items():
                sha256 = record["sha256"] if verify else ""
                _check(_file(path.parent, name), record["bytes"], sha256)
            shard = cls(path.parent, manifest)
            _check_counts(shard, {name: manifest["files"][name]["bytes"] for name in FILES})
        except NOT_ONE as error:
            raise damaged(path, f"not a whole manifest ({error!r})") from None
        if verify:
            shard.check_ends()
            _check_all(shard)
        return shard

    def check_ends(self) -> None:
        """Raise UserError unless documents follow each other up to the last token."""
        check_increasing(self.map("document_ends"), _file(self.directory, "document_ends"))
        for name in ("document_ends", "line_ends"):
            ends = self.map(name)
            if (last := int(ends[-1]) if len(ends) else 0) != self.num_tokens:
                raise damaged(
                    _file(self.directory, name),
                    f"{last:,} as the last end of {self.num_tokens:,} tokens",
                )

    def document_id(self, index: int) -> str:
        """The source's name of a document."""
        ends = self.map("document_id_ends")
        start = int(ends[index - 1]) if index else 0
        with _file(self.directory, "document_ids").open("rb") as file:
            file.seek(start)
            return file.read(max(int(ends[index]) - start, 0)).decode(errors="replace")


def write_shard(
    directory: Path,
    batches: Iterable[tuple[Sequence[str], Encoded]],
    tokenizer: Tokenizer,
    read: Mapping[str, int] = MappingProxyType({}),
    *,
    by_line: bool = False,
) -> None:
    """Write (names, encoded) batches of documents into an empty `directory`, the manifest last.

    read: counts of the documents that were read; it is complete when the batches are.
    """
    dtype = dtype_of(tokenizer.vocabulary_size)
    num_bytes = num_unknown = 0
    with contextlib.ExitStack() as stack:
        with writing(directory):
            files = {name: stack.enter_context(_Checksummed(directory, name)) for name in FILES}
        for names, encoded in batches:
            if (highest := int(encoded.ids.max())) >= tokenizer.vocabulary_size:
                raise ValueError(
                    f"token id {highest} is beyond the vocabulary of {tokenizer.vocabulary_size}"
                )
            with writing(directory):
                _append(files, [name.encode() for name in names], encoded, dtype)
            num_bytes += int(encoded.num_bytes.sum())
            num_unknown += encoded.num_unknown
        with writing(directory):
            records = {name: file.finish() for name, file in files.items()}
    manifest = {
        "format": FORMAT,
        "tokenizer": tokenizer.hash(),
        "vocabulary_size": tokenizer.vocabulary_size,
        "dtype": dtype,
        "num_tokens": records["tokens"]["bytes"] // np.dtype(dtype).itemsize,
        "num_documents": records["document_ends"]["bytes"] // 8,
        "num_lines": records["line_ends"]["bytes"] // 8,
        "num_bytes": num_bytes,
        "num_unknown": num_unknown,
        "read": dict(sorted(read.items())),
        **({"by_line": True} if by_line else {}),
        "files": records,
    }
    with writing(directory):
        write_atomically(directory / MANIFEST, as_json(manifest))


def dtype_of(vocabulary_size: int) -> str:
    """The dtype in which the ids of a vocabulary are written."""
    return "<u2" if vocabulary_size <= 1 << 16 else "<u4"


def _append(
    files: dict[str, _Checksummed], names: list[bytes], encoded: Encoded, dtype: str
) -> None:
    num_tokens = files["tokens"].size // np.dtype(dtype).itemsize
    positions = {
        "document_ends": encoded.document_ends + num_tokens,
        "line_ends": encoded.line_ends + num_tokens,
        "document_bytes": encoded.num_bytes,
        "document_id_ends": np.cumsum([len(name) for name in names]) + files["document_ids"].size,
    }
    for file, values in positions.items():
        files[file].write(values.astype("<u8").tobytes())
    files["document_ids"].write(b"".join(names))
    files["tokens"].write(encoded.ids.astype(dtype).tobytes())


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an OSError into a UserError that names the directory that cannot be written."""
    try:
        yield
    except OSError as error:
        remedy = "make the place writable, free space there or name another directory"
        what = f"{path}: cannot write the prepared data"
        raise cannot_write(what, path, error, remedy) from None


class _Checksummed(contextlib.AbstractContextManager["_Checksummed"]):
    """A file that counts and hashes what is written to it."""

    def __init__(self, directory: Path, name: str) -> None:
        self._file = _file(directory, name).open("wb")
        self._sha256 = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes) -> None:
        self._file.write(data)
        self._sha256.update(data)
        self.size += len(data)

    def finish(self) -> dict[str, Any]:
        """Flush to the disk, and return the file's record for the manifest."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return {"bytes": self.size, "sha256": self._sha256.hexdigest()}

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):  # `finish` has flushed, or another error is on its way
            self._file.close()


def _file(directory: Path, name: str) -> Path:
    return directory / f"{name}.bin"


def as_json(manifest: Mapping[str, Any]) -> bytes:
    """A manifest as the bytes that are written and hashed."""
    return json.dumps(manifest, indent=1).encode()


def _check(file: Path, size: int, sha256: str) -> None:
    actual = file.stat().st_size if file.exists() else None
    if actual != size:
        has = "no file" if actual is None else f"{actual:,} bytes"
        raise damaged(file, f"{has}, expected {size:,} bytes")
    if sha256:
        with opened(file) as stream:
            if hashlib.file_digest(stream, "sha256").hexdigest() != sha256:
                raise damaged(file, f"{size:,} bytes as expected, but not those written")


def _check_counts(shard: Shard, sizes: Mapping[str, int]) -> None:
    """Raise ValueError if the counts of a manifest do not fit the sizes of its files."""
    for name in ("num_tokens", "num_documents", "num_lines", "num_bytes", "num_unknown"):
        if type(number := getattr(shard, name)) is not int or number < 0:
            raise ValueError(f"{name} is {number!r}")
    if shard.dtype != dtype_of(shard.vocabulary_size):
        raise ValueError(f"{shard.dtype} for a vocabulary of {shard.vocabulary_size}")
    lengths = dict.fromkeys(POSITIONS, shard.num_documents) | {"line_ends": shard.num_lines}
    expected = {name: 8 * length for name, length in lengths.items()}
    expected["tokens"] = shard.dtype.itemsize * shard.num_tokens
    for name, size in expected.items():
        if sizes[name] != size:
            raise ValueError(f"{name} has {sizes[name]:,} bytes, its counts say {size:,}")


def check_increasing(ends: npt.NDArray[Any], file: Path) -> None:
    """Raise UserError if ends (n,) do not increase strictly from above 0."""
    if len(ends) and not (ends[0] > 0 and (ends[1:] > ends[:-1]).all()):
        raise damaged(file, "ends that do not increase")


def _check_all(shard: Shard) -> None:
    """Raise UserError if a shard's arrays do not agree with each other; reads all of them."""
    check_increasing(shard.map("line_ends"), _file(shard.directory, "line_ends"))
    tokens, lines, documents = map(shard.map, ("tokens", "line_ends", "document_ends"))
    for start in range(0, len(tokens), CHUNK):
        if (highest := int(tokens[start : start + CHUNK].max())) >= shard.vocabulary_size:
            what = f"token id {highest} of a vocabulary of {shard.vocabulary_size}"
            raise damaged(_file(shard.directory, "tokens"), what)
    if len(documents) and not (lines[np.searchsorted(lines, documents)] == documents).all():
        raise damaged(_file(shard.directory, "line_ends"), "a document that ends within a line")
    if (num_bytes := int(shard.map("document_bytes").sum())) != shard.num_bytes:
        raise damaged(
            _file(shard.directory, "document_bytes"),
            f"{num_bytes:,} bytes of text, expected {shard.num_bytes:,}",
        )
    names = _file(shard.directory, "document_ids").read_bytes()
    ends = shard.map("document_id_ends")
    if len(ends) and (ends[-1] != len(names) or (ends[1:] < ends[:-1]).any()):
        raise damaged(_file(shard.directory, "document_id_ends"), "ends that are not of its names")


def damaged(file: Path, found: str) -> UserError:
    """The error to raise if a file is not as it was written."""
    return UserError(
        f"{file}: the prepared data is damaged: found {found}; "
        f"delete {file.parent}, and the command that prepared it makes it again"
    )
