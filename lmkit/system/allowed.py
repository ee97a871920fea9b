"""Whose classes and commands may be named: lmkit's own list, and what the user has added to it.

A user adds a package with the environment variable LMKIT_ALLOW, or by installing it, where it
declares entry points. A config found on disk can do neither.
"""

import importlib
import os
import sys
from collections.abc import Iterable
from contextlib import suppress
from functools import cache
from importlib.machinery import PathFinder
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

from lmkit.errors import UserError

PREFIXES = ("lmkit", "lightning", "torch", "torchmetrics")
VARIABLE = "LMKIT_ALLOW"
# Groups of entry points: packages that configs may name, and commands.
PACKAGES, COMMANDS = "lmkit.packages", "lmkit.commands"
ABSENT = "; it must be installed, or lie in the working directory"


def allowed_prefixes() -> tuple[str, ...]:
    """The packages, or modules, that classes may come from."""
    return tuple(dict.fromkeys((*PREFIXES, *users_prefixes())))


def users_prefixes() -> tuple[str, ...]:
    """Those that the user allows: by the environment, and by having installed them."""
    return (*_of_environment(), *(entry.value for entry in installed(PACKAGES)))


def installed(group: str) -> tuple[EntryPoint, ...]:
    """What installed distributions declare in a group of entry points, by name."""
    return _installed(group, tuple(sys.path))


@cache
def _installed(group: str, path: tuple[str, ...]) -> tuple[EntryPoint, ...]:
    found = (entry for entry in entry_points(group=group) if not _is_here(entry))
    return tuple(sorted(found, key=lambda entry: entry.name))


def _is_here(entry: EntryPoint) -> bool:
    """Whether its distribution lies in the working directory, where `python -m` looks first: who
    made the directory may have put it there, and nobody has installed it."""
    try:
        return entry.dist is not None and Path(str(entry.dist.locate_file(""))).samefile(".")
    except OSError:
        return False


def _of_environment() -> tuple[str, ...]:
    users = (prefix.strip() for prefix in os.environ.get(VARIABLE, "").split(","))
    names = tuple(prefix for prefix in users if prefix)
    for name in names:
        if not all(part.isidentifier() for part in name.split(".")):
            raise UserError(
                f"{VARIABLE} has {name!r}: expected names of packages or modules, as they are "
                "imported, with commas between them"
            )
    return names


def find_in_working_directory() -> None:
    """Have what LMKIT_ALLOW names found in the working directory too, after all other places.

    `python -m lmkit` looks there anyway, `lmkit` would not.
    """
    with suppress(OSError, ValueError):  # the directory is gone; a name that no module can have
        here = str(Path.cwd())
        names = {prefix.partition(".")[0] for prefix in _of_environment()}
        if any(find_spec(n) is None and PathFinder.find_spec(n, [here]) for n in names):
            sys.path.append(here)  # which other processes inherit


def allowed_class(path: str, prefixes: tuple[str, ...]) -> type:
    """The class that a dotted path names, if it really lives in a package of `prefixes`.

    Raises UserError for anything else: functions, modules, and classes that a module merely
    imported from elsewhere.
    """
    if not under(path, prefixes):
        raise UserError(
            f"{path} is not allowed: a class must come from {', '.join(prefixes)}{remedy(path)}"
        )
    if any(part.startswith("_") for part in path.split(".")):
        raise UserError(f"{path} is not allowed: what begins with an underscore is private")
    found = look_up(path)
    if not isinstance(found, type) or not under(found.__module__, prefixes):
        raise UserError(f"{path} is not a class of {', '.join(prefixes)}")
    return found


def remedy(path: str) -> str:
    """`; if mine is ...`: the line that would allow a name; nothing where none should."""
    first, dot, _ = path.partition(".")
    if not dot or not first.isidentifier() or first in (*PREFIXES, *sys.stdlib_module_names):
        return ""
    names = ",".join(dict.fromkeys((*_of_environment(), first)))
    return f"; if {first} is a package that you trust: export {VARIABLE}={names}"


def under(path: str, prefixes: Iterable[str]) -> bool:
    """Whether a dotted path is one of the prefixes, or below it."""
    return any(path == prefix or path.startswith(f"{prefix}.") for prefix in prefixes)


def look_up(path: str) -> object:
    """The object at a dotted path; imports only modules below its own first package."""
    first, *rest = path.split(".")
    name, found = first, _import(first)
    for part in rest:
        name = f"{name}.{part}"
        if isinstance(found, ModuleType) and not hasattr(found, part):
            found = _import(name)
        elif hasattr(found, part):
            found = getattr(found, part)
        else:
            raise UserError(f"{name} does not exist")
    return found


def _import(name: str) -> object:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name and not under(name, [f"{error.name}"]):
            raise UserError(f"{name} cannot be imported: {error}") from error
        where = "" if "." in name else ABSENT
        raise UserError(f"{name} does not exist: {error}{where}") from error
