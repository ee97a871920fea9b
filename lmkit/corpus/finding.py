"""Finds the files of paths, globs and lists of them, and the splits that their names state."""

import fnmatch
import glob
import itertools
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from lmkit.errors import UserError
from lmkit.system.paths import Paths, found_at, listed, located, nearby, readable, reason

# Suffixes of compressed files that can be read.
COMPRESSED = (".gz", ".zst", ".bz2", ".xz")
# Suffixes of files that are not text, with what they are and what to do.
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
_SHARD = re.compile(r"-\d+-of-\d+$")
SPLIT_NAMES = {"train": "train", "test": "test"} | dict.fromkeys(
    ("valid", "validation", "val", "dev"), "valid"
)


def find_files(path: Paths, key: str, suffixes: tuple[str, ...] = ()) -> dict[str, Path]:
    """The files by name of a file, directory or glob, sorted; of a list in its order, each once.

    A path that exists is never a glob. Names are relative to the directory, or to the one that all
    files of a list share, so that they do not change when it moves. `suffixes` select files of a
    directory; hidden files are left out.
    """
    if isinstance(path, str):
        return _find(path, key, suffixes)
    if not path:
        raise UserError(f"{key} is empty: name a file, a directory or a glob")
    found = [_find(each, key, suffixes) for each in path]
    if len(found) == 1:
        return found[0]
    # a/../b.txt and b.txt are the same file, and become the same path.
    files = [Path(os.path.abspath(file)) for each in found for file in each.values()]  # noqa: PTH100
    return _named(files, Path(os.path.commonpath([file.parent for file in files])))


def _named(files: Iterable[Path], base: Path) -> dict[str, Path]:
    """Files by their names within a directory, each file once."""
    named: dict[str, Path] = {}
    for file in files:
        name = readable("/".join(file.relative_to(base).parts))
        if named.setdefault(name, file) != file:
            raise UserError(f"{base} has two files that are called {name}: rename one of them")
    return named


def _find(path: str, key: str, suffixes: tuple[str, ...]) -> dict[str, Path]:
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
        raise UserError(f"{key}={path} cannot be read: {reason(error, path)}") from error
    _check_formats(files, f"{key}={path}", suffixes)
    return files


def _what_is(file: Path) -> str:
    if file.is_symlink() and not file.exists():
        return "a link to what is not there: mend it, or leave it out"
    return "a pipe, socket or device: text is read more than once, so save it as a file"


def _belongs(name: str, suffixes: tuple[str, ...]) -> bool:
    hidden = any(part.startswith(".") for part in name.split("/"))
    return not hidden and (not suffixes or name.endswith(suffixes))


def _expand(path: Path) -> tuple[Path, str, list[Path] | None]:
    """The part of a path that exists as a directory, the rest, and the paths it stands for (None
    if there is no such path)."""
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
    """A directory and all below it, each with the names of its files; links are followed, but no
    directory comes twice.

    Raises OSError for a directory that cannot be read. Hidden directories are left out.
    """

    def fail(error: OSError) -> None:
        raise error

    seen = {directory.resolve(), *directory.resolve().parents}
    for parent, directories, names in os.walk(directory, onerror=fail, followlinks=True):
        yield Path(parent), names
        known = {name: Path(parent, name).resolve() for name in sorted(directories)}
        directories.clear()
        for name, real in known.items():
            if real not in seen and not name.startswith("."):
                seen.add(real)
                directories.append(name)


def _files(directory: Path) -> list[Path]:
    return [parent / name for parent, names in _tree(directory) for name in names]


def _globbed(base: Path, parts: Sequence[str]) -> list[Path]:
    """The paths that a pattern matches, the same as Python's `glob` finds.

    But `glob` treats a directory that cannot be read as empty, and follows links in circles.
    """
    paths = [base]
    for part in parts:
        inside = (_matches(path, part) for path in paths if path.is_dir())
        paths = list(dict.fromkeys(itertools.chain.from_iterable(inside)))
    return paths


def _matches(directory: Path, part: str) -> list[Path]:
    if part == "**":
        return [
            path
            for each, names in _tree(directory)
            for path in (each, *(each / name for name in names if not name.startswith(".")))
        ]
    if not glob.has_magic(part):
        return [directory / part] if os.path.lexists(directory / part) else []
    names = fnmatch.filter((entry.name for entry in directory.iterdir()), part)
    return [directory / name for name in names if part.startswith(".") or not name.startswith(".")]


def _check_formats(files: Mapping[str, Path], where: str, suffixes: tuple[str, ...]) -> None:
    """Refuse files that are not text, by their names, before anything is read."""
    kinds: dict[str, list[str]] = {}
    for name in files:
        ending = Path(name.lower().removesuffix(compression(name.lower()))).suffix
        for endings, what in _FORMATS if ending not in suffixes else ():
            if ending in endings:
                kinds.setdefault(what, []).append(name)
    if kinds:
        wrong = "; ".join(f"{listed(names)}, {what}" for what, names in kinds.items())
        others = len(files) > sum(map(len, kinds.values()))
        rest = "; for the other files alone, name them by a glob or a list" if others else ""
        raise UserError(f"{where} names {wrong}{rest}")


def compression(name: str) -> str:
    """The suffix of a compressed file, "" for any other."""
    return next((suffix for suffix in COMPRESSED if name.endswith(suffix)), "")


def split_of(name: str) -> str:
    """The split that is stated by a file's name or by the outermost of its directories, or "".

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
    """Files by the split they state, "" for none; empty unless train and another are stated."""
    splits: dict[str, dict[str, Path]] = {}
    for name, file in files.items():
        splits.setdefault(split_of(name), {})[name] = file
    return splits if "train" in splits and splits.keys() & {"valid", "test"} else {}


def split_files(files: Mapping[str, Path], path: str, key: str) -> dict[str, dict[str, Path]]:
    """A directory's files by the splits that they state; if they state none, all are train."""
    splits = by_split(files)
    if others := splits.get(""):
        raise UserError(
            f"{key}={path} has its own splits but other files too ({listed(list(others))}): give "
            f"the splits as {key}, data.valid_path and data.test_path, or all files as a glob"
        )
    return splits or {"train": dict(files)}


def published_files(
    path: str, names: Mapping[str, Sequence[str]], option: str, expected: str
) -> dict[str, str]:
    """The one file of each split in the directory of a corpus whose files have these names.

    expected: what the option takes, for messages.
    """
    directory = found_at(path, "data.path")
    if directory.is_file():
        raise UserError(f"data.path={path} is a file: {option} takes {expected}")
    if not directory.is_dir():
        raise UserError(f"data.path={path} does not exist; {nearby(directory)}")
    return {
        split: _published_file(directory, split, candidates, option)
        for split, candidates in names.items()
    }


def _published_file(directory: Path, split: str, names: Sequence[str], option: str) -> str:
    present = [name for name in names if (directory / name).is_file()]
    if len(present) != 1:
        has = f"both {' and '.join(present)}" if present else f"none of {', '.join(names)}"
        raise UserError(
            f"data.path={directory} has {has}: {nearby(directory / split)}; "
            f"{option} needs one file for {split}"
        )
    return str(directory / present[0])
