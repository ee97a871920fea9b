"""Bytes on disk -> text: finding files, decompressing, decoding, cutting into documents."""

import contextlib
import difflib
import glob
import hashlib
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import IO, Any

from lmkit.bounds import MAX_LINE, Bounded, Expansion, Lines, TooLongError
from lmkit.errors import UserError

_CODECS = {".gz": "gzip", ".zst": "zstd"}
_BUFFER = 1 << 20
_NAMES_SHOWN = 8
_SHARD = re.compile(r"-\d+-of-\d+$")
SPLIT_NAMES = {"train": "train", "test": "test"} | dict.fromkeys(
    ("valid", "validation", "val", "dev"), "valid"
)


def nearby(path: Path) -> str:
    """What a missing path may have meant: the names at its nearest directory that exists."""
    parent = next(p for p in path.absolute().parents if p.is_dir())
    missing = path.absolute().relative_to(parent).parts[0]
    names = sorted(entry.name for entry in parent.iterdir() if not entry.name.startswith("."))
    near = difflib.get_close_matches(missing, names, n=3, cutoff=0.6)
    return f"{parent} has {listed(near or names)}"


def listed(names: Sequence[str]) -> str:
    """At most eight names, and how many more there are."""
    more = len(names) - _NAMES_SHOWN
    shown = ", ".join(names[:_NAMES_SHOWN]) or "nothing in it"
    return f"{shown} and {more} more" if more > 0 else shown


def located(path: str) -> Path:
    """The path as it stands, with a leading ~/ read as the home directory."""
    return Path(path).expanduser() if path.startswith("~/") else Path(path)


def find_files(path: str, key: str, suffixes: tuple[str, ...] = ()) -> dict[str, Path]:
    """Name -> file of a file, directory or glob, sorted; a path that exists is never a glob.

    Names are relative to the directory, so that they do not change when it moves. `suffixes`
    pick files of a directory; hidden files are left out.
    """
    if not path:
        raise UserError(f"{key} is empty: name a file, a directory or a glob")
    try:
        base, rest, found = _expand(located(path))
        if found is None:
            raise UserError(f"{key}={path} does not exist; {nearby(base / rest)}")
        named = {"/".join(file.relative_to(base).parts): file for file in sorted(found)}
        files = {
            name: file
            for name, file in named.items()
            if file.is_file() and (rest or _belongs(name, suffixes))
        }
        if not files:
            expected = f" that end in {' or '.join(suffixes)}" if suffixes and not rest else ""
            near = nearby(base / (rest or "*"))
            raise UserError(f"{key}={path} names no files{expected}; {near}")
    except OSError as error:
        raise UserError(f"{key}={path} cannot be read: {error.strerror}") from error
    return files


def _belongs(name: str, suffixes: tuple[str, ...]) -> bool:
    hidden = any(part.startswith(".") for part in name.split("/"))
    return not hidden and (not suffixes or name.endswith(suffixes))


def _expand(path: Path) -> tuple[Path, str, list[Path] | None]:
    """The directory that exists, what follows it, and the paths meant (None: no such path)."""
    if path.is_dir():
        return path, "", list(path.rglob("*"))
    if path.exists():
        return path.parent, path.name, [path]
    base = next(parent for parent in path.parents if parent.is_dir())
    rest = str(path.relative_to(base))
    if not glob.has_magic(rest):
        return base, rest, None
    # Path.glob raises on patterns such as a**.
    names = glob.glob(f"{glob.escape(str(base))}/{rest}", recursive=True)  # noqa: PTH207
    return base, rest, [Path(name) for name in names]


def split_files(files: Mapping[str, Path], path: str, key: str) -> dict[str, dict[str, Path]]:
    """A directory's files by the split that their names or subdirectories state, if they do.

    `train.jsonl.gz`, `validation-00000-of-00002.parquet` and `test/a.txt` state one.
    """
    found: dict[str, dict[str, Path]] = {}
    for name, file in files.items():
        stem = _SHARD.sub("", name.split("/")[0].split(".")[0])
        found.setdefault(SPLIT_NAMES.get(stem, ""), {})[name] = file
    if "train" not in found or not found.keys() & {"valid", "test"}:
        return {"train": dict(files)}
    if others := found.get(""):
        raise UserError(
            f"{key}={path} has its own splits but other files too ({listed(list(others))}): give "
            f"the splits as {key}, data.valid_path and data.test_path, or all files as a glob"
        )
    return found


def sha256(path: Path) -> str:
    """The hash of a file's bytes as they lie on disk."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextlib.contextmanager
def open_bytes(path: Path) -> Iterator[IO[bytes]]:
    """The file's bytes, decompressed by its suffix as they are read, up to `MAX_EXPANSION`.

    Python's `zstandard` ends a truncated stream silently; pyarrow raises.
    """
    codec = _CODECS.get(path.suffix)
    try:
        if codec is None:
            with path.open("rb", buffering=_BUFFER) as stream:
                yield stream
        else:
            import pyarrow

            with pyarrow.CompressedInputStream(pyarrow.OSFile(str(path)), codec) as stream:
                yield io.BufferedReader(Bounded(stream, path), _BUFFER)
    except OSError as error:
        problem = f"cannot be read ({error})" if codec is None else f"is damaged ({error})"
        remedy = "check its permissions" if codec is None else f"make the {path.suffix} file anew"
        raise UserError(f"{path} {problem}: {remedy}") from error


def text_lines(path: Path) -> Iterator[str]:
    r"""The lines of a UTF-8 file with their "\n"; "\r\n" becomes "\n", a leading BOM goes."""
    offset = 0
    with open_bytes(path) as stream:
        for raw in iter(partial(stream.readline, MAX_LINE + 1), b""):
            if len(raw) > MAX_LINE:
                raise UserError(
                    f"{path} has a line of more than {MAX_LINE:,} bytes, from byte offset {offset} "
                    "on: is it text? Break its lines, or leave it out"
                )
            try:
                line = raw.decode()
            except UnicodeDecodeError as error:
                place = " of the decompressed text" if path.suffix in _CODECS else ""
                raise UserError(
                    f"{path} is not UTF-8: byte 0x{raw[error.start]:02x} at byte offset "
                    f"{offset + error.start}{place} ({error.reason}); convert the file to UTF-8 "
                    "or leave it out"
                ) from None
            if offset == 0:
                line = line.removeprefix("\ufeff")
            offset += len(raw)
            yield line[:-2] + "\n" if line.endswith("\r\n") else line


Cutter = Callable[[Iterable[str]], Iterator[tuple[int, str]]]


def cutter(unit: str, heading: str | None) -> Cutter:
    """What cuts lines into documents, each with the number of its first line."""
    cutters: dict[str, Cutter] = {"file": whole, "paragraph": by_paragraph, "line": by_line}
    if unit not in (*cutters, "heading"):
        raise UserError(f"data.unit={unit} is not one of {', '.join(cutters)}, heading")
    if unit != "heading" and heading is None:
        return cutters[unit]
    if unit != "heading" or heading is None:
        raise UserError(
            f"data.unit={unit} but data.heading={heading}: a pattern such as ^# goes with "
            "data.unit=heading and with no other"
        )
    try:
        return partial(by_heading, heading=re.compile(heading))
    except re.error as error:
        raise UserError(f"data.heading={heading} is not a regular expression: {error}") from None


def whole(lines: Iterable[str]) -> Iterator[tuple[int, str]]:
    """All lines as one document, numbered 0."""
    document = Lines(0)
    for line in lines:
        document.add(line)
    yield 0, document.text()


def by_line(lines: Iterable[str]) -> Iterator[tuple[int, str]]:
    """Each line without its line end."""
    for number, line in enumerate(lines, 1):
        yield number, line.removesuffix("\n")


def by_paragraph(lines: Iterable[str]) -> Iterator[tuple[int, str]]:
    """Each run of lines between blank lines, without its last line end."""
    kept = Lines(1)
    for number, line in enumerate(lines, 1):
        if not line.isspace():
            kept.add(line)
            continue
        if kept.lines:
            yield kept.first, kept.text().removesuffix("\n")
        kept = Lines(number + 1)
    if kept.lines:
        yield kept.first, kept.text().removesuffix("\n")


def by_heading(lines: Iterable[str], heading: re.Pattern[str]) -> Iterator[tuple[int, str]]:
    """Each run of lines that a line matching `heading` opens: the documents join to the text.

    Lines before the first heading belong to the first document. A heading is searched for in
    each line: faster on 10 MB of WikiText (12 ms) than one multi-line search (35 ms).
    """
    kept, opened = Lines(1), False
    for number, line in enumerate(lines, 1):
        if heading.search(line):
            if opened:
                yield kept.first, kept.text()
                kept = Lines(number)
            opened = True
        kept.add(line)
    yield kept.first, kept.text()


def documents(path: Path, cut: Cutter) -> Iterator[tuple[int, str]]:
    """The documents that a text file is cut into, each with the number of its first line."""
    try:
        yield from cut(text_lines(path))
    except TooLongError as error:
        raise UserError(f"{path} {error}") from None


def json_fields(path: Path, field: str) -> Iterator[tuple[int, str]]:
    """The number and text field of each line of JSON; blank lines are no records."""
    for number, line in enumerate(text_lines(path), 1):
        if line.isspace():
            continue
        try:
            record = json.loads(line.removesuffix("\n"))
        except json.JSONDecodeError as error:
            raise UserError(
                f"{path}, line {number} is not JSON: {error.msg} at column {error.colno}"
            ) from None
        except (ValueError, RecursionError) as error:  # a number or nesting beyond Python's bounds
            raise UserError(f"{path}, line {number} is no record: {error}") from None
        if not isinstance(record, dict):
            raise UserError(
                f"{path}, line {number} is {type(record).__name__}, not an object with "
                f"a field {field!r}"
            )
        if field not in record:
            raise UserError(
                f"{path}, line {number} has no field {field!r}: it has {listed(list(record))}; "
                "set data.field"
            )
        yield number, as_text(record[field], f"{path}, line {number}, field {field!r}")


def as_text(value: object, place: str) -> str:
    """The string itself, "" for null; JSON can hold half a surrogate pair, UTF-8 cannot."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise UserError(f"{place} is {type(value).__name__}, not a string")
    try:
        value.isascii() or value.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{place} is not Unicode text: {error.reason}") from None
    return value.replace("\r\n", "\n")


def parquet_column(
    path: Path, column: str, groups: range | None = None
) -> Iterator[tuple[int, str]]:
    """The number (from 1) and text of each row, or of those of some row groups, read a batch at
    a time."""
    with _parquet(path, column) as file:
        groups = range(file.num_row_groups) if groups is None else groups
        number = sum(file.metadata.row_group(k).num_rows for k in range(groups.start))
        expansion = Expansion(path)
        for batch in file.iter_batches(batch_size=1024, row_groups=groups, columns=[column]):
            for value in batch.column(0):
                number += 1
                text = _scalar_text(value, f"{path}, row {number}")
                expansion.add(len(text))
                yield number, text


def num_row_groups(path: Path) -> int:
    """What a parquet file can be read in."""
    with _parquet(path) as file:
        return int(file.num_row_groups)


@contextlib.contextmanager
def _parquet(path: Path, column: str | None = None) -> Iterator[Any]:
    """The file, with a look at what its footer says of the column that is to be read."""
    import pyarrow
    from pyarrow import parquet

    try:
        footer = parquet.read_metadata(path)
        if column is not None:
            _check_column(path, footer.schema.to_arrow_schema(), column)
            _check_declared(path, footer, column)
        # As a dictionary: a value that many rows repeat is in memory once.
        repeated = [column] if column is not None else None
        with parquet.ParquetFile(path, metadata=footer, read_dictionary=repeated) as file:
            yield file
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path} is not a whole parquet file: {error}") from error


def _check_column(path: Path, schema: Any, column: str) -> None:
    from pyarrow import types

    names = schema.names
    if column not in names:
        raise UserError(f"{path} has no column {column!r}: it has {listed(names)}; set data.column")
    kind = schema.field(column).type
    kind = kind.value_type if types.is_dictionary(kind) else kind
    if not (types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)):
        raise UserError(f"{path}, column {column!r} is {kind}, not string; set data.column")


def _check_declared(path: Path, footer: Any, column: str) -> None:
    """Refuse pages that would unpack beyond all proportion, before they are read."""
    expansion = Expansion(path)
    for group in range(footer.num_row_groups):
        row_group = footer.row_group(group)
        for index in range(row_group.num_columns):
            chunk = row_group.column(index)
            if chunk.path_in_schema == column:
                expansion.add(chunk.total_uncompressed_size)


def _scalar_text(value: Any, place: str) -> str:
    try:
        return as_text(value.as_py(), place)
    except UnicodeDecodeError as error:
        raise UserError(
            f"{place} is not UTF-8: byte offset {error.start} of the text ({error.reason})"
        ) from None
