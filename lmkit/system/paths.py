"""Files by path: one, a directory, a glob or a list of them, and the splits their names state."""

import csv
import difflib
import fnmatch
import glob
import hashlib
import itertools
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from lmkit.errors import UserError

# Of compressed files that are read as they are.
COMPRESSED = (".gz", ".zst", ".bz2", ".xz")
# What is no text, by the ends of names, with what it is and what to do.
_FORMATS = (
    (
        (".zip", ".tar", ".tgz", ".tbz", ".tbz2", ".txz", ".tzst", ".7z", ".rar"),
        "an archive: unpack it, and name the directory of its files",
    ),
    (
        (".pdf", ".doc", ".docx", ".odt", ".rtf", ".epub", ".mobi", ".ppt", ".pptx"),
        "a formatted document: make plain text of it, as with pdftotext or pandoc",
    ),
    ((".xls", ".xlsx", ".ods"), "a spreadsheet: save it as .csv, and take data=csv"),
    (
        (".lz4", ".br", ".lz", ".lzma", ".z", ".lzo"),
        f"compressed in a way that is not read: make it anew as one of {', '.join(COMPRESSED)}",
    ),
    (
        (".arrow", ".feather", ".avro", ".orc", ".db", ".sqlite", ".sqlite3", ".pkl", ".npy"),
        "binary data: write its text as parquet or JSON lines",
    ),
    (
        (".png", ".jpg", ".jpeg", ".gif", ".webp", ".mp3", ".wav", ".mp4", ".webm"),
        "no text but a picture or a recording: leave it out",
    ),
    ((".parquet",), "parquet: take data=parquet"),
)
PERMISSIONS = "check that it is there, and its permissions"
_NAMES_SHOWN = 8
_NAME_LENGTH = 60
_SHARD = re.compile(r"-\d+-of-\d+$")
SPLIT_NAMES = {"train": "train", "test": "test"} | dict.fromkeys(
    ("valid", "validation", "val", "dev"), "valid"
)

Paths = str | Sequence[str]


def nearby(path: Path) -> str:
    """What a missing path may have meant: the names at its nearest directory that exists."""
    try:
        parent = next(p for p in path.absolute().parents if p.is_dir())
        names = sorted(entry.name for entry in parent.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        return f"what is there cannot be read: {_reason(error)}"
    missing = path.absolute().relative_to(parent).parts[0]
    near = difflib.get_close_matches(missing, names, n=3, cutoff=0.6)
    return f"{parent} has {listed(near or names)}"


def listed(names: Sequence[str]) -> str:
    """At most eight names, each on the line and cut where it is long, and how many more."""
    more = len(names) - _NAMES_SHOWN
    flat = [" ".join(readable(name).split()) for name in names[:_NAMES_SHOWN]]
    short = [name if len(name) <= _NAME_LENGTH else f"{name[:_NAME_LENGTH]}..." for name in flat]
    shown = ", ".join(short) or "nothing in it"
    return f"{shown} and {more} more" if more > 0 else shown


def readable(name: str) -> str:
    r"""A file's name as Unicode text: a byte that is not UTF-8 as \xff."""
    try:
        encoded = os.fsencode(name)
    except UnicodeEncodeError:  # no file's name
        encoded = name.encode(errors="backslashreplace")
    return encoded.decode(errors="backslashreplace")


def as_list(text: str) -> list[str] | None:
    """The paths of `[a.txt,b/*.txt]`, double quotes around one that holds a comma; None for what
    is a path, or a pattern such as `[ab]/[0-9]`."""
    depths = list(itertools.accumulate((c == "[") - (c == "]") for c in text))
    if not text.startswith("[") or 0 in depths[:-1] or depths[-1] != 0 or exists(text):
        return None
    try:
        (names,) = csv.reader([text[1:-1]], skipinitialspace=True)
    except csv.Error:  # of what no list has in it, as a line end
        return None
    return [name.strip() for name in names]


def exists(path: str) -> bool:
    """Whether there is such a path; a name that no file can have is none."""
    return os.path.exists(path)  # noqa: PTH110 - Path.exists raises for a name that is too long


def spelled(path: Paths) -> str:
    """A path, or a list of them, as it is written on the command line."""
    return path if isinstance(path, str) else f"[{','.join(path)}]"


def located(path: str) -> Path:
    """The path as it stands, with a leading ~/ read as the home directory."""
    return Path(path).expanduser() if path.startswith("~/") else Path(path)


def found_at(path: str, key: str) -> Path:
    """As `located`; raises UserError where it lies in a directory that may not be searched."""
    place = located(path)
    try:
        place.stat()
    except PermissionError as error:
        raise UserError(f"{key}={path} cannot be read: {_reason(error)}") from None
    except (OSError, ValueError):
        pass  # it is not there
    return place


def find_files(path: Paths, key: str, suffixes: tuple[str, ...] = ()) -> dict[str, Path]:
    """Name -> file of a file, directory or glob, sorted; of a list, in its order, each file once.

    A path that exists is never a glob. Names are relative to the directory, or to that which all
    files of a list share, so that they do not change when it moves. `suffixes` pick files of a
    directory; hidden files are left out.
    """
    if isinstance(path, str):
        return _found(path, key, suffixes)
    if not path:
        raise UserError(f"{key} is empty: name a file, a directory or a glob")
    found = [_found(each, key, suffixes) for each in path]
    if len(found) == 1:
        return found[0]
    # Of a/../b.txt and b.txt, which are one file, the same is made.
    files = [Path(os.path.abspath(file)) for each in found for file in each.values()]  # noqa: PTH100
    return _named(files, Path(os.path.commonpath([file.parent for file in files])))


def _named(files: Iterable[Path], base: Path) -> dict[str, Path]:
    """Files by their names within a directory, each once."""
    named: dict[str, Path] = {}
    for file in files:
        name = readable("/".join(file.relative_to(base).parts))
        if named.setdefault(name, file) != file:
            raise UserError(f"{base} has two files that are called {name}: rename one of them")
    return named


def _found(path: str, key: str, suffixes: tuple[str, ...]) -> dict[str, Path]:
    if not path:
        raise UserError(f"{key} is empty: name a file, a directory or a glob")
    try:
        base, rest, found = _expand(located(path))
        if found is None:
            raise UserError(f"{key}={path} does not exist; {nearby(base / rest)}")
        files = {
            name: file
            for name, file in _named(sorted(found), base).items()
            if not file.is_dir() and (rest or _belongs(name, suffixes))
        }
        for file in files.values():
            if not file.is_file():
                which = f"names {file}," if len(files) > 1 else "names no files: it is"
                raise UserError(f"{key}={path} {which} {_what_is(file)}")
        if not files:
            plain = [s for s in suffixes if s.removesuffix(compression(s)) not in {*suffixes} - {s}]
            expected = f" that end in {' or '.join(plain)}" if suffixes and not rest else ""
            near = nearby(base / (rest or "*"))
            raise UserError(f"{key}={path} names no files{expected}; {near}")
    except OSError as error:
        raise UserError(f"{key}={path} cannot be read: {_reason(error, path)}") from error
    _check_formats(files, f"{key}={path}", suffixes)
    return files


def _reason(error: OSError, path: str = "") -> str:
    """Why, and of what, if that is not the path itself."""
    place = "" if error.filename in (None, path) else f"{error.filename}: "
    return f"{place}{error.strerror}"


def _what_is(file: Path) -> str:
    if file.is_symlink() and not file.exists():
        return "a link to what is not there: mend it, or leave it out"
    return "a pipe, socket or device: text is read more than once, so save it as a file"


def _belongs(name: str, suffixes: tuple[str, ...]) -> bool:
    hidden = any(part.startswith(".") for part in name.split("/"))
    return not hidden and (not suffixes or name.endswith(suffixes))


def _expand(path: Path) -> tuple[Path, str, list[Path] | None]:
    """The directory that exists, what follows it, and the paths meant (None: no such path)."""
    if path.is_dir():
        return path, "", _files(path)
    if path.exists():
        return path.parent, path.name, [path]
    base = next(parent for parent in path.parents if parent.is_dir())
    rest = str(path.relative_to(base))
    if not glob.has_magic(rest):
        return base, rest, None
    return base, rest, _globbed(base, Path(rest).parts)


def _tree(directory: Path) -> Iterator[tuple[Path, list[str]]]:
    """A directory and those in it, linked ones too but each once, with the names of their files.

    Raises OSError for one that cannot be read. Hidden ones are left out.
    """

    def fail(error: OSError) -> None:
        raise error

    seen = {directory.resolve(), *directory.resolve().parents}
    for place, directories, names in os.walk(directory, onerror=fail, followlinks=True):
        yield Path(place), names
        known = {name: Path(place, name).resolve() for name in sorted(directories)}
        directories.clear()
        for name, real in known.items():
            if real not in seen and not name.startswith("."):
                seen.add(real)
                directories.append(name)


def _files(directory: Path) -> list[Path]:
    return [place / name for place, names in _tree(directory) for name in names]


def _globbed(base: Path, parts: Sequence[str]) -> list[Path]:
    """The paths that a pattern matches, as Python's `glob` has them.

    But it takes a directory that cannot be read for an empty one, and follows links in circles.
    """
    places = [base]
    for part in parts:
        inside = (_matches(place, part) for place in places if place.is_dir())
        places = list(dict.fromkeys(itertools.chain.from_iterable(inside)))
    return places


def _matches(place: Path, part: str) -> list[Path]:
    if part == "**":
        return [
            path
            for each, names in _tree(place)
            for path in (each, *(each / name for name in names if not name.startswith(".")))
        ]
    if not glob.has_magic(part):
        return [place / part] if os.path.lexists(place / part) else []
    names = fnmatch.filter((entry.name for entry in place.iterdir()), part)
    return [place / name for name in names if part.startswith(".") or not name.startswith(".")]


def _check_formats(files: Mapping[str, Path], where: str, suffixes: tuple[str, ...]) -> None:
    """Refuse files that are no text by their names, before anything is read."""
    kinds: dict[str, list[str]] = {}
    for name in files:
        ending = Path(name.lower().removesuffix(compression(name.lower()))).suffix
        for endings, what in _FORMATS if ending not in suffixes else ():
            if ending in endings:
                kinds.setdefault(what, []).append(name)
    if kinds:
        found = "; ".join(f"{listed(names)}, {what}" for what, names in kinds.items())
        others = len(files) > sum(map(len, kinds.values()))
        rest = "; for the other files alone, name them by a glob or a list" if others else ""
        raise UserError(f"{where} names {found}{rest}")


def compression(name: str) -> str:
    """The end of a compressed file's name, "" for any other."""
    return next((suffix for suffix in COMPRESSED if name.endswith(suffix)), "")


def split_of(name: str) -> str:
    """The split that a file's name or the outermost of its directories states, or "".

    `train.jsonl.gz`, `wiki.train.tokens`, `en-train.csv`, `train_10M/a.txt` and
    `data/validation-00000-of-00002.parquet` state one: between dots, the first or last word.
    """
    for part in name.lower().split("/"):
        words = [_SHARD.sub("", dotted).replace("_", "-").split("-") for dotted in part.split(".")]
        ends = {word for each in words for word in (each[0], each[-1])}
        stated = {SPLIT_NAMES[word] for word in ends & SPLIT_NAMES.keys()}
        if len(stated) == 1:
            return stated.pop()
    return ""


def by_split(files: Mapping[str, Path]) -> dict[str, dict[str, Path]]:
    """Files by the split they state, "" among them; empty without train and another split."""
    found: dict[str, dict[str, Path]] = {}
    for name, file in files.items():
        found.setdefault(split_of(name), {})[name] = file
    return found if "train" in found and found.keys() & {"valid", "test"} else {}


def split_files(files: Mapping[str, Path], path: str, key: str) -> dict[str, dict[str, Path]]:
    """A directory's files by the splits that they state, if they do; else all are train."""
    found = by_split(files)
    if others := found.get(""):
        raise UserError(
            f"{key}={path} has its own splits but other files too ({listed(list(others))}): give "
            f"the splits as {key}, data.valid_path and data.test_path, or all files as a glob"
        )
    return found or {"train": dict(files)}


def sha256(path: Path) -> str:
    """The hash of a file's bytes as they lie on disk."""
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): {PERMISSIONS}") from None


def state(path: Path) -> tuple[int, int]:
    """Size and time of a file, which change where it is written to."""
    try:
        status = path.stat()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): {PERMISSIONS}") from None
    return status.st_size, status.st_mtime_ns
