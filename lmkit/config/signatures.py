"""The keys that a callable has as arguments, with the types of their annotations."""

from __future__ import annotations

import ast
import contextlib
import importlib
import inspect
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, get_type_hints

from lmkit.config.targets import FORWARDED


@dataclass(frozen=True)
class Key:
    """One key of a signature: the type of its value, and its default if it has one."""

    hint: Any
    default: Any = inspect.Parameter.empty

    @property
    def required(self) -> bool:
        return self.default is inspect.Parameter.empty


def signature_keys(target: Callable[..., Any]) -> dict[str, Key]:
    """The arguments of `target`, and those of the base classes, or of the functions in FORWARDED,
    that its **kwargs are passed on to."""
    keys: dict[str, Key] = {}
    for function in _functions(target):
        hints = _hints(function)
        named = {
            name: Key(hints.get(name, parameter.annotation), parameter.default)
            for name, parameter in _named(function).items()
        }
        # A required argument of a base class is passed by the class that inherits from it.
        new = {name: key for name, key in named.items() if not (key.required and keys)}
        keys |= {name: key for name, key in new.items() if name not in keys}
    return keys


def _functions(target: Callable[..., Any]) -> Iterator[Callable[..., Any]]:
    """The functions that are called in turn, as long as each passes its **kwargs on."""
    if not isinstance(target, type):
        yield target
        return
    makers = [vars(each)["__init__"] for each in target.__mro__[:-1] if "__init__" in vars(each)]
    for maker in makers:
        yield maker
        if not any(p.kind is p.VAR_KEYWORD for p in _parameters(maker)):
            return
    for each in target.__mro__:
        if forwarded := FORWARDED.get(f"{each.__module__}.{each.__qualname__}"):
            module, _, name = forwarded.rpartition(".")
            with contextlib.suppress(ImportError):  # the check names the package
                function = getattr(importlib.import_module(module), name)
                yield vars(function)["__init__"] if isinstance(function, type) else function


def _parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    return list(inspect.signature(function).parameters.values())


def _named(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The parameters of a function or constructor that can be given by name."""
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {p.name: p for p in _parameters(function) if p.kind in kinds and p.name != "self"}


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    """The types of all annotations; Any for one that cannot be evaluated."""
    inner = inspect.unwrap(function)
    names = _names_for_type_checkers(inner.__module__)
    with contextlib.suppress(NameError):
        return get_type_hints(inner, localns=names, include_extras=True)
    hints: dict[str, Any] = {}
    for name, annotation in inspect.get_annotations(inner).items():
        alone = type(name, (), {"__annotations__": {name: annotation}})
        alone.__module__ = inner.__module__
        try:
            hints |= get_type_hints(alone, localns=names, include_extras=True)
        except NameError:
            hints[name] = Any
    return hints


@cache
def _names_for_type_checkers(module: str) -> dict[str, Any]:
    """The names that a module imports under `if TYPE_CHECKING`, such as Iterable in
    torch.optim.lr_scheduler."""
    imported: dict[str, Any] = {}
    try:
        tree = ast.parse(inspect.getsource(sys.modules[module]))
    except (KeyError, OSError, TypeError):  # no file: a class made elsewhere
        return imported
    for block in tree.body:
        if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.unparse(block.test):
            for each in block.body:
                code = compile(ast.Module([each], []), module, "exec")
                with contextlib.suppress(ImportError):
                    exec(code, dict(vars(sys.modules[module])), imported)
    return imported
