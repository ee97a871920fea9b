"""A source in every CPython: the language reference and the standard library's docstrings."""

import ast
import platform
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path

from lmkit.corpus.source import Document, Source
from lmkit.errors import UserError
from lmkit.ranges import Share
from lmkit.system import paths

_TOPICS = "pydoc_data.topics"
# Tests, demonstrations, and packages that newer versions do not have.
_SKIPPED_PACKAGES = {"distutils", "idlelib", "lib2to3", "pydoc_data", "turtledemo"}
_SKIPPED_PARTS = {"test", "tests", "idle_test"}
_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
_BLOCKS = ("body", "handlers", "orelse", "finalbody")


def source_files() -> dict[str, Path]:
    """The source file of each public module of the standard library, and of the reference."""
    root = Path(sysconfig.get_path("stdlib"))
    files = {_TOPICS: root.joinpath(*_TOPICS.split(".")).with_suffix(".py")}
    if not files[_TOPICS].is_file():
        raise UserError(
            f"data=pydocs: this Python has no {files[_TOPICS]}: install the whole of Python, "
            "or take data=files with a text of yours"
        )
    top_level = sys.stdlib_module_names - _SKIPPED_PACKAGES
    for entry in sorted(root.iterdir()):
        if entry.stem in top_level and not entry.stem.startswith("_"):
            for file in sorted(entry.rglob("*.py")) if entry.is_dir() else [entry]:
                parts = file.relative_to(root).with_suffix("").parts
                parts = parts[:-1] if parts[-1] == "__init__" else parts
                if not any(part.startswith("_") or part in _SKIPPED_PARTS for part in parts):
                    files[".".join(parts)] = file
    return files


def pydoc_documents() -> Iterator[tuple[str, str]]:
    """Id and text of each topic of the reference, then of each module: its docstrings in order.

    Modules are parsed, never imported: importing all of the library has side effects.
    """
    files = source_files()
    del files[_TOPICS]
    from pydoc_data.topics import topics

    for topic, text in topics.items():
        yield f"topic/{topic}", text
    for module, file in files.items():
        if docstrings := list(_docstrings(ast.parse(file.read_bytes()))):
            yield f"module/{module}", "\n\n".join(docstrings) + "\n"


def _docstrings(node: ast.AST) -> Iterator[str]:
    if isinstance(node, _DOCUMENTED) and (docstring := ast.get_docstring(node)):
        yield docstring
    for block in _BLOCKS:
        for child in getattr(node, block, ()):
            yield from _docstrings(child)


class Pydocs(Source):
    """The language reference and the docstrings of the Python that runs: needs no download."""

    def __init__(self, *, valid_fraction: Share = 0.1, test_fraction: Share = 0.1) -> None:
        python = f"{platform.python_implementation()} {platform.python_version()}"
        cut = {"valid": valid_fraction, "test": test_fraction}
        super().__init__("data=pydocs", {"python": python}, cut)

    @cached_property
    def _documents(self) -> list[Document]:
        return [Document(id, text) for id, text in pydoc_documents()]

    def _own_splits(self) -> Iterable[str]:
        return ("train",)

    def _read(self, split: str) -> Iterator[Document]:
        return iter(self._documents)

    def _content(self) -> Iterable[object]:
        for name, file in source_files().items():
            yield name, paths.sha256(file)
