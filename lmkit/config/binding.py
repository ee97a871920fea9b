"""Config nodes against the signatures they will be called with: bind all first, build later."""

import inspect
import math
import shlex
import sys
import types
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import is_dataclass
from datetime import timedelta
from difflib import get_close_matches
from pathlib import Path
from typing import (
    Annotated,
    Any,
    Literal,
    Protocol,
    Union,
    get_args,
    get_origin,
    runtime_checkable,
)

from lmkit.config.groups import CONF
from lmkit.config.keys import elsewhere, option_targets, options_taking
from lmkit.config.safety import reveal
from lmkit.config.signatures import signature_keys
from lmkit.config.targets import resolve_target
from lmkit.errors import UserError
from lmkit.ranges import broken
from lmkit.run.renamed import KEYS
from lmkit.system.redaction import SHOWN, is_secret_key, mask

# Callables whose keys a node holds, each with the arguments that the code passes itself.
Owners = Mapping[Callable[..., Any], Collection[str]]


class Group(dict[str, Any]):
    """An annotation: a mapping that is checked elsewhere, against its own classes."""


@runtime_checkable
class Checked(Protocol):
    """A class of a config whose values can contradict each other."""

    @staticmethod
    def mistakes(config: Mapping[str, Any], at: str) -> list[str]:
        """What is wrong with values that fit one by one, a sentence each, `{at}.key=value: ...`.

        config: every key of the class, with its default where it is not set. at: the path of its
        node, as `model`.
        """


class MisfitError(Exception):
    """A value that is not what an annotation asks for; the message is what it asks for."""


class RangeError(MisfitError):
    """A value, or one in it, that is none of those an annotation asks for; the message is what it
    must be."""


def bind_node(
    path: str,
    node: Any,
    bases: tuple[type, ...],
    mistakes: list[str],
    given: Collection[str] = (),
    beside: Owners | None = None,
    whole: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Bind an object node to the constructor its `_target_` names; return it with values fitted.

    `given` are arguments that the code passes itself; the node may also hold keys of `beside`.
    `whole` is the config, in which a key of another node is found.
    """
    if not isinstance(node, Mapping) or "_target_" not in node:
        group, _, name = path.partition(".")
        is_option = (CONF / group / f"{name}.yaml").is_file()
        remedy = f"; choose {group}={name}" if is_option else ""
        mistakes.append(f"{path}: expected an object with a _target_, found {_kind(node)}{remedy}")
        return {}
    try:
        target = resolve_target(node["_target_"], bases)
    except UserError as error:
        mistakes.append(f"{path}._target_: {error}")
        return {}
    values = {key: value for key, value in node.items() if key != "_target_"}
    return {
        "_target_": node["_target_"],
        **bind(path, values, {target: given, **(beside or {})}, mistakes, node["_target_"], whole),
    }


def bind(
    path: str,
    values: Mapping[str, Any],
    owners: Owners,
    mistakes: list[str],
    called: str = "",
    whole: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """`values` fitted to the keys of `owners`, `called` so in messages.

    Unknown, missing and misfitting keys are noted and left out; where there are none of the
    last two, those of the owners that are `Checked` are asked too.
    """
    keys = {
        name: key
        for owner, given in reversed(list(owners.items()))
        for name, key in signature_keys(owner).items()
        if name not in given
    }
    at = f"{path}." if path else ""
    by = f" by {called}" if called else ""
    set_elsewhere = next(iter(owners.values()))
    fitted: dict[str, Any] = {}
    spoiled = set()
    for name, value in values.items():
        if name not in keys:
            mistakes.append(unknown(at, str(name), keys, called, set_elsewhere, whole, value))
        elif value != "???":
            before = len(mistakes)
            fitted[name] = _fit_noting(
                f"{at}{name}", value, keys[name].hint, mistakes, set_elsewhere
            )
            if len(mistakes) > before:
                spoiled.add(name)
    missing = [n for n, key in keys.items() if key.required and n not in fitted]
    for name in missing:
        inner = ".NAME" if get_origin(keys[name].hint) in (dict, Mapping) else ""
        mistakes.append(f"{at}{name} is required{by}; set {at}{name}{inner}=...")
    fitted = {name: value for name, value in fitted.items() if name not in spoiled}
    for owner, given in owners.items() if not (missing or spoiled) else ():
        mistakes += _impossible_values(path, owner, fitted, given)
    return fitted


def unknown(
    at: str,
    name: str,
    keys: Collection[str],
    called: str = "",
    given: Collection[str] = (),
    whole: Mapping[str, Any] | None = None,
    value: Any = None,
) -> str:
    """The mistake of a key that is none of what is `called` so, with the nearest that is: a key of
    this name elsewhere in the `whole` config, one that is spelt alike here, one of another option
    of the group, or one that is spelt alike elsewhere."""
    if name in ("_args_", "_partial_", "_recursive_", "_convert_"):
        return f"{at}{name} is not supported; write the arguments as keys"
    if name in given:
        return f"{at}{name} is set by lmkit itself and cannot be configured"
    now = KEYS.get(called, {}).get(name)
    near = [f"{at}{key}" for key in ([now] if now else get_close_matches(name, list(keys), n=1))]
    others = [] if now else elsewhere(whole or {}, name)
    group = at.removesuffix(".")
    # A `_target_` alone, or in a mapping, leaves the other keys of the option that it is merged to.
    merged = called and (targets := option_targets(group)) and called not in targets.values()
    left = f"; where an option of the group has set it, leave it out: ~{at}{name}" if merged else ""
    if not (near or others) and (options := options_taking(group, name)):
        return f"{at}{name} is not a key of {called}; it is one of {', '.join(options)}{left}"
    if not (near or others):
        others = elsewhere(whole or {}, name, near=True)
    close = [assigned(path, value) for path in others] or near
    there = f"there are: {', '.join(keys) or 'none'}"
    remedy = f"did you mean {' or '.join(close)}?" if close else there
    return f"{at}{name} is not a key{f' of {called}' if called else ''}; {remedy}{left}"


def assigned(path: str, value: Any) -> str:
    """`path=value` where the value is a plain one, as a shell takes it."""
    if isinstance(value, Mapping | list) or value is None:
        return path
    return shlex.quote(mask(f"{path}={str(value).lower() if isinstance(value, bool) else value}"))


def fit(value: Any, hint: Any) -> Any:
    """`value` as `hint` wants it: exact types first, then what a user plainly means by it.

    An int is fit for a float, "1e-3" for a number and 1e3 for an int. Raises MisfitError.
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
    """Whether a value is a mapping that `timedelta` takes, as {minutes: 30}."""
    try:
        timedelta(**value)
    except (TypeError, ValueError, OverflowError):
        return False
    return True


def describe(hint: Any) -> str:
    """An annotation in the words of an error message."""
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
    if hint is Group or is_dataclass(hint):
        return "a mapping"
    if arguments and origin in (list, tuple, Sequence, Iterable, set, Collection):
        return f"a list of {' and '.join(dict.fromkeys(map(describe, arguments)))}"
    return str(getattr(hint, "__name__", hint))


def _fit_noting(
    path: str, value: Any, hint: Any, mistakes: list[str], given: Collection[str] = ()
) -> Any:
    """`value` fitted; `given` are what the code passes to the objects in it as well."""
    arms = (hint, *get_args(hint))
    record = next((arm for arm in arms if isinstance(arm, type) and is_dataclass(arm)), None)
    if isinstance(value, Mapping) and record:
        return bind(path, value, {record: ()}, mistakes)
    if isinstance(value, Mapping) and "_target_" in value and Group not in arms:
        if bases := object_bases(hint):
            return bind_node(path, value, bases, mistakes, given)
        mistakes.append(f"{path}: expected {describe(hint)}, found an object with a _target_")
        return value
    if isinstance(value, list) and _holds_object(value) and (item := item_hint(hint)):
        return [
            _fit_noting(f"{path}.{number}", each, item, mistakes, given)
            for number, each in enumerate(value)
        ]
    if Group not in arms and _holds_object(value):
        mistakes.append(f"{path}: expected {describe(hint)}, found an object with a _target_ in it")
        return value
    try:
        revealed = reveal(value) if isinstance(value, str) else value
        fitted = fit(revealed, hint)
        return fitted if revealed == value else value
    except UserError as error:
        mistakes.append(f"{path}={value}: {error}")
    except RangeError as wrong:
        mistakes.append(f"{path}={value}: {wrong}")
    except MisfitError as misfit:
        shown = "null" if value is None else SHOWN if is_secret_key(path) else value
        close = get_close_matches(str(value), _options(hint), n=1)
        remedy = f"; did you mean {close[0]}?" if close else ""
        mistakes.append(f"{path}={shown}: expected {misfit}, found {_kind(value)}{remedy}")
    return value


def item_hint(hint: Any) -> Any:
    """What a list of objects is a list of; None where the annotation has none in a list."""
    for arm in (hint, *get_args(hint)):
        if get_origin(arm) in (list, Sequence, Iterable) and object_bases(arm):
            return get_args(arm)[0]
    return None


def _holds_object(value: Any) -> bool:
    if isinstance(value, Mapping):
        return "_target_" in value or any(map(_holds_object, value.values()))
    return isinstance(value, list | tuple) and any(map(_holds_object, value))


def _fit_any_of(value: Any, hints: Sequence[Any]) -> Any:
    for hint in hints:
        if type(value) is hint:
            return fit(value, hint)
    wrong: MisfitError | None = None
    for hint in hints:
        try:
            return fit(value, hint)
        except RangeError as error:  # says more than what the types are
            wrong = error
        except MisfitError:
            continue
    raise wrong or MisfitError(describe(Union[tuple(hints)]))  # noqa: UP007 - built at run time


def _fit_plain(value: Any, hint: type) -> Any:
    """A number, string or bool; bool is never taken for a number."""
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


def _impossible_values(
    path: str, owner: Callable[..., Any], fitted: Mapping[str, Any], given: Collection[str]
) -> list[str]:
    """What a `Checked` owner says of the values together."""
    if not (isinstance(owner, type) and issubclass(owner, Checked)):
        return []
    keys = {name: key for name, key in signature_keys(owner).items() if name not in given}
    values = {name: key.default for name, key in keys.items() if not key.required}
    values |= {name: value for name, value in fitted.items() if name in keys}
    return owner.mistakes(values, path)


def _options(hint: Any) -> list[str]:
    """The strings that the Literals of an annotation allow."""
    if get_origin(hint) is Literal:
        return [str(option) for option in get_args(hint)]
    return [option for argument in get_args(hint) for option in _options(argument)]


def object_bases(hint: Any) -> tuple[type, ...]:
    """The classes an annotation names that a config can only write as an object."""
    inner = [base for argument in get_args(hint) for base in object_bases(argument)]
    return tuple([hint, *inner] if _is_object(hint) else inner)


def _is_object(hint: Any) -> bool:
    """Whether an annotation is a class that a config can only write as a `_target_`."""
    if not isinstance(hint, type) or get_origin(hint) or hint is Group or is_dataclass(hint):
        return False
    return hint.__module__.partition(".")[0] not in sys.stdlib_module_names


def _kind(value: Any) -> str:
    names = {types.NoneType: "null", dict: "a mapping", list: "a list", str: "text"}
    return names.get(type(value), type(value).__name__)
