"""The source text of modules, found without importing them."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from functools import cache
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec
from pathlib import Path

from lmkit.errors import UserError


@dataclass(frozen=True)
class Module:
    """A module's file as a syntax tree."""

    name: str
    file: Path
    tree: ast.Module

    @property
    def package(self) -> str:
        """What a relative import starts from."""
        return self.name if self.file.name == "__init__.py" else self.name.rpartition(".")[0]


@cache
def source_of(name: str) -> Module | None:
    """The module of this name; None where it has no source that is found.

    Raises UserError where its source is no Python.
    """
    spec = _spec(name)
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        return None
    file = Path(spec.origin)
    try:
        return Module(name, file, ast.parse(file.read_text(encoding="utf-8")))
    except (SyntaxError, ValueError) as error:
        line = f"line {error.lineno}: " if isinstance(error, SyntaxError) else ""
        raise UserError(f"{file}: {line}{getattr(error, 'msg', error)}") from error


def folders(package: str) -> list[Path]:
    """The directories that a package lies in; none for a plain module or what is not found."""
    spec = _spec(package)
    places = spec.submodule_search_locations if spec else None
    return [Path(place) for place in places or ()]


def _spec(name: str) -> ModuleSpec | None:
    first, *rest = name.split(".")
    try:
        # Only what looks up a package's first name asks the hooks of editable installations.
        spec = find_spec(first)
    except ValueError:  # of an empty name, or of __main__
        return None
    place = first
    for part in rest:
        if spec is None or spec.submodule_search_locations is None:
            return None
        place = f"{place}.{part}"
        spec = PathFinder.find_spec(place, spec.submodule_search_locations)
    return spec
