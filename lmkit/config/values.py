"""Checks values of a config against the types of their keys, and converts them."""

import inspect
import math
import sys
import types
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import is_dataclass
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from lmkit.ranges import broken


class Group(dict[str, Any]):
    """An annotation of a mapping that is checked elsewhere, against its own class."""


class MisfitError(Exception):
    """A value has another type than an annotation allows; the message describes the annotation."""


class RangeError(MisfitError):
    """A value, or one inside it, is out of the range of an annotation; the message is what it must
    be."""


def fit(value: Any, hint: Any) -> Any:
    """`value` converted to the type `hint`: unchanged if it has that type, else as a user means it.

    An int may become a float, "1e-3" a number and 1e3 an int. Raises MisfitError.
    """
    origin, arguments = get_origin(hint) or hint, get_args(hint)
    if hint in (Any, inspect.Parameter.empty):
        return value
    if origin in (Union, types.UnionType):
        return _fit_any_of(value, arguments)
    if origin is Annotated:
        number = fit(value, arguments[0])
        if must := broken(number, arguments[1:]):
            raise RangeError(f"must be {must}")
        return number
    if origin is Literal:
        if any(value == option and type(value) is type(option) for option in arguments):
            return value
    elif hint in (None, types.NoneType):
        if value is None:
            return value
    elif hint in (bool, int, float, str):
        return _fit_plain(value, hint)
    elif origin in (list, tuple, Sequence, Iterable, set, Collection):
        if isinstance(value, list | tuple):
            return _fit_items(value, origin, arguments)
    elif hint is Group:
        if isinstance(value, Mapping):
            return value
    elif origin in (dict, Mapping):
        if isinstance(value, Mapping):
            inner = arguments[1] if arguments else Any
            return {key: _fit_item(key, item, inner) for key, item in value.items()}
    elif (hint is Path and isinstance(value, str)) or (hint is timedelta and _is_duration(value)):
        return value
    raise MisfitError(describe(hint))


def _fit_item(key: Any, value: Any, hint: Any) -> Any:
    try:
        return fit(value, hint)
    except RangeError as wrong:
        raise RangeError(f"{key} {wrong}") from None
    except MisfitError as misfit:
        raise RangeError(f"{key} must be {misfit}") from None


def _is_duration(value: Any) -> bool:
    """Whether a value is a mapping of arguments of `timedelta`, as {minutes: 30}."""
    try:
        timedelta(**value)
    except (TypeError, ValueError, OverflowError):
        return False
    return True


def describe(hint: Any) -> str:
    """An annotation as error messages write it."""
    origin, arguments = get_origin(hint) or hint, get_args(hint)
    if origin is Annotated:
        return describe(arguments[0])
    if origin is Callable:
        return "a function, which no config can hold"
    if hint is timedelta:
        return "a mapping, as {minutes: 30}"
    if origin in (Union, types.UnionType):
        plain = [a for a in arguments if not _is_object(a)]
        return " | ".join(dict.fromkeys(map(describe, plain or arguments)))
    if origin is Literal:
        return " | ".join(str(option) for option in arguments)
    if hint is types.NoneType:
        return "null"
    if hint is Group or is_dataclass(hint) or origin in (dict, Mapping):
        return "a mapping"
    if arguments and origin in (list, tuple, Sequence, Iterable, set, Collection):
        return f"a list of {' and '.join(dict.fromkeys(map(describe, arguments)))}"
    return str(getattr(hint, "__name__", hint))


def item_hint(hint: Any) -> Any:
    """The annotation of the items, if an annotation is a list of objects; else None."""
    for arm in (hint, *get_args(hint)):
        if get_origin(arm) in (list, Sequence, Iterable) and object_bases(arm):
            return get_args(arm)[0]
    return None


def holds_object(value: Any) -> bool:
    if isinstance(value, Mapping):
        return "_target_" in value or any(map(holds_object, value.values()))
    return isinstance(value, list | tuple) and any(map(holds_object, value))


def _fit_any_of(value: Any, hints: Sequence[Any]) -> Any:
    for hint in hints:
        if type(value) is hint:
            return fit(value, hint)
    wrong: MisfitError | None = None
    for hint in hints:
        try:
            return fit(value, hint)
        except RangeError as error:  # tells more than a list of the types
            wrong = error
        except MisfitError:
            continue
    raise wrong or MisfitError(describe(Union[tuple(hints)]))  # noqa: UP007 - built at run time


def _fit_plain(value: Any, hint: type) -> Any:
    """Fit a number, string or bool; a bool never counts as a number."""
    if type(value) is hint and hint is not float:
        return value
    if hint is str and type(value) in (int, float):
        return str(value)
    if hint in (int, float) and isinstance(value, str | int | float) and type(value) is not bool:
        try:
            number = float(value)
        except ValueError:
            raise MisfitError(describe(hint)) from None
        if hint is float and not math.isfinite(number):
            raise RangeError("must be a finite number")
        if hint is float or number.is_integer():
            return int(value) if hint is int and isinstance(value, int) else hint(number)
    raise MisfitError(describe(hint))


def _fit_items(value: Sequence[Any], origin: Any, hints: tuple[Any, ...]) -> list[Any]:
    if origin is tuple and hints and hints[-1] is not Ellipsis:
        if len(value) != len(hints):
            raise RangeError(f"must have {len(hints)} values, found {len(value)}")
        return [fit(item, hint) for item, hint in zip(value, hints, strict=True)]
    return [fit(item, hints[0] if hints else Any) for item in value]


def options(hint: Any) -> list[str]:
    """The values that the Literals in an annotation allow."""
    if get_origin(hint) is Literal:
        return [str(option) for option in get_args(hint)]
    return [option for argument in get_args(hint) for option in options(argument)]


def object_bases(hint: Any) -> tuple[type, ...]:
    """The classes in an annotation whose instances a config can only write as objects."""
    inner = [base for argument in get_args(hint) for base in object_bases(argument)]
    return tuple([hint, *inner] if _is_object(hint) else inner)


def _is_object(hint: Any) -> bool:
    """Whether an annotation is a class of objects, which a config writes with a `_target_`."""
    if not isinstance(hint, type) or get_origin(hint) or hint is Group or is_dataclass(hint):
        return False
    return hint.__module__.partition(".")[0] not in sys.stdlib_module_names


def kind(value: Any) -> str:
    names = {types.NoneType: "null", dict: "a mapping", list: "a list", str: "text"}
    return names.get(type(value), type(value).__name__)
