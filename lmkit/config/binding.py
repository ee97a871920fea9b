"""Checks config nodes against the signatures that will be called with them."""

import shlex
from collections.abc import Callable, Collection, Mapping
from dataclasses import is_dataclass
from difflib import get_close_matches
from typing import Any, Protocol, get_args, get_origin, runtime_checkable

from lmkit.config.groups import CONF
from lmkit.config.keys import elsewhere, option_targets, options_taking
from lmkit.config.safety import reveal
from lmkit.config.signatures import signature_keys
from lmkit.config.targets import resolve_target
from lmkit.config.values import (
    Group,
    MisfitError,
    RangeError,
    describe,
    fit,
    holds_object,
    item_hint,
    kind,
    object_bases,
    options,
)
from lmkit.errors import UserError
from lmkit.run.renamed import KEYS
from lmkit.system.redaction import SHOWN, is_secret_key, mask

# Callables whose arguments are keys of a node, each with the arguments that the code itself passes.
Owners = Mapping[Callable[..., Any], Collection[str]]


@runtime_checkable
class Checked(Protocol):
    """A class of the config that can find contradictions between its values."""

    @staticmethod
    def mistakes(config: Mapping[str, Any], at: str) -> list[str]:
        """Mistakes in values that are valid one by one, a sentence each, `{at}.key=value: ...`.

        config: every key of the class, with its default if it is not set. at: the path of its node,
        such as `model`.
        """


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

    `given`: arguments that the code itself passes. `beside`: other owners of keys in the node.
    `whole`: the config, which is searched for an unknown key.
    """
    if not isinstance(node, Mapping) or "_target_" not in node:
        group, _, name = path.partition(".")
        is_option = (CONF / group / f"{name}.yaml").is_file()
        remedy = f"; choose {group}={name}" if is_option else ""
        mistakes.append(f"{path}: expected an object with a _target_, found {kind(node)}{remedy}")
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
    *,
    partial: bool = False,
) -> dict[str, Any]:
    """`values` fitted to the keys of `owners`, which messages name as `called`.

    Unknown, missing and misfitting keys are noted and left out; if none is missing or misfits, the
    owners that are `Checked` check the values together. With `partial` none need be there.
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
    required = [] if partial else [n for n, key in keys.items() if key.required]
    missing = [n for n in required if n not in fitted]
    for name in missing:
        inner = ".NAME" if get_origin(keys[name].hint) in (dict, Mapping) else ""
        mistakes.append(f"{at}{name} is required{by}; set {at}{name}{inner}=...")
    fitted = {name: value for name, value in fitted.items() if name not in spoiled}
    for owner, given in owners.items() if not (missing or spoiled or partial) else ():
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
    """The mistake of a key that `called` does not have, with the best suggestion: a key of the same
    name elsewhere in the `whole` config, one with a similar name here, one of another option of the
    group, or one with a similar name elsewhere."""
    if name in ("_args_", "_partial_", "_recursive_", "_convert_"):
        return f"{at}{name} is not supported; write the arguments as keys"
    if name in given:
        return f"{at}{name} is set by lmkit itself and cannot be configured"
    now = KEYS.get(called, {}).get(name)
    near = [f"{at}{key}" for key in ([now] if now else get_close_matches(name, list(keys), n=1))]
    others = [] if now else elsewhere(whole or {}, name)
    group = at.removesuffix(".")
    # A `_target_` that was set by itself, or in a mapping, is merged with the option of the group,
    # whose other keys stay.
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
    """`path=value`, quoted for a shell; only the path if the value is not a plain one."""
    if isinstance(value, Mapping | list) or value is None:
        return path
    return shlex.quote(mask(f"{path}={str(value).lower() if isinstance(value, bool) else value}"))


def _fit_noting(
    path: str, value: Any, hint: Any, mistakes: list[str], given: Collection[str] = ()
) -> Any:
    """`value` fitted, with mistakes noted; `given`: arguments from the code for objects in it."""
    arms = (hint, *get_args(hint))
    record = next((arm for arm in arms if isinstance(arm, type) and is_dataclass(arm)), None)
    if isinstance(value, Mapping) and record:
        return bind(path, value, {record: ()}, mistakes)
    if isinstance(value, Mapping) and "_target_" in value and Group not in arms:
        if bases := object_bases(hint):
            return bind_node(path, value, bases, mistakes, given)
        mistakes.append(f"{path}: expected {describe(hint)}, found an object with a _target_")
        return value
    if isinstance(value, list) and holds_object(value) and (item := item_hint(hint)):
        return [
            _fit_noting(f"{path}.{number}", each, item, mistakes, given)
            for number, each in enumerate(value)
        ]
    if Group not in arms and holds_object(value):
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
        close = get_close_matches(str(value), options(hint), n=1)
        remedy = f"; did you mean {close[0]}?" if close else ""
        mistakes.append(f"{path}={shown}: expected {misfit}, found {kind(value)}{remedy}")
    return value


def _impossible_values(
    path: str, owner: Callable[..., Any], fitted: Mapping[str, Any], given: Collection[str]
) -> list[str]:
    """The mistakes that an owner finds in its values together, if it is `Checked`."""
    if not (isinstance(owner, type) and issubclass(owner, Checked)):
        return []
    keys = {name: key for name, key in signature_keys(owner).items() if name not in given}
    values = {name: key.default for name, key in keys.items() if not key.required}
    values |= {name: value for name, value in fitted.items() if name in keys}
    return owner.mistakes(values, path)
