"""The keys that a callable takes, with the types that its annotations mean."""

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
    """One key of a signature: the type of its value, and its default where it has one."""

    hint: Any
    default: Any = inspect.Parameter.empty

    @property
    def required(self) -> bool:
        return self.default is inspect.Parameter.empty


def signature_keys(target: Callable[..., Any]) -> dict[str, Key]:
    """The arguments `target` names, and those that it hands on to whom it inherits from, or to
    what FORWARDED says, as **kwargs."""
    keys: dict[str, Key] = {}
    for function in _functions(target):
        hints = _hints(function)
        named = {
            name: Key(hints.get(name, parameter.annotation), parameter.default)
            for name, parameter in _named(function).items()
        }
        # What a class asks for, one that inherits from it passes itself.
        new = {name: key for name, key in named.items() if not (key.required and keys)}
        keys |= {name: key for name, key in new.items() if name not in keys}
    return keys


def _functions(target: Callable[..., Any]) -> Iterator[Callable[..., Any]]:
    """What is called in turn, as long as each hands its **kwargs on."""
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
                found = getattr(importlib.import_module(module), name)
                yield vars(found)["__init__"] if isinstance(found, type) else found


def _parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    return list(inspect.signature(function).parameters.values())


def _named(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The parameters of a function or constructor that can be given by name."""
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {p.name: p for p in _parameters(function) if p.kind in kinds and p.name != "self"}


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    """The types of all annotations; anything for one that cannot be read."""
    inner = inspect.unwrap(function)
    names = _names_for_type_checkers(inner.__module__)
    with contextlib.suppress(NameError):
        return get_type_hints(inner, localns=names, include_extras=True)
    found: dict[str, Any] = {}
    for name, annotation in inspect.get_annotations(inner).items():
        alone = type(name, (), {"__annotations__": {name: annotation}})
        alone.__module__ = inner.__module__
        try:
            found |= get_type_hints(alone, localns=names, include_extras=True)
        except NameError:
            found[name] = Any
    return found


@cache
def _names_for_type_checkers(module: str) -> dict[str, Any]:
    """What a module imports under `if TYPE_CHECKING`, as torch.optim.lr_scheduler its Iterable."""
    found: dict[str, Any] = {}
    try:
        tree = ast.parse(inspect.getsource(sys.modules[module]))
    except (KeyError, OSError, TypeError):  # no file: a class made elsewhere
        return found
    for block in tree.body:
        if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.unparse(block.test):
            for each in block.body:
                code = compile(ast.Module([each], []), module, "exec")
                with contextlib.suppress(ImportError):
                    exec(code, dict(vars(sys.modules[module])), found)
    return found
