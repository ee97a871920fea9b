"""Config nodes against the signatures they will be called with: bind all first, build later."""

import shlex
from collections.abc import Callable, Collection, Mapping
from dataclasses import is_dataclass
from difflib import get_close_matches
from typing import (
    Any,
    Protocol,
    get_args,
    get_origin,
    runtime_checkable,
)

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

# Callables whose keys a node holds, each with the arguments that the code passes itself.
Owners = Mapping[Callable[..., Any], Collection[str]]


@runtime_checkable
class Checked(Protocol):
    """A class of a config whose values can contradict each other."""

    @staticmethod
    def mistakes(config: Mapping[str, Any], at: str) -> list[str]:
        """What is wrong with values that fit one by one, a sentence each, `{at}.key=value: ...`.

        config: every key of the class, with its default where it is not set. at: the path of its
        node, as `model`.
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

    `given` are arguments that the code passes itself; the node may also hold keys of `beside`.
    `whole` is the config, in which a key of another node is found.
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
    """What a `Checked` owner says of the values together."""
    if not (isinstance(owner, type) and issubclass(owner, Checked)):
        return []
    keys = {name: key for name, key in signature_keys(owner).items() if name not in given}
    values = {name: key.default for name, key in keys.items() if not key.required}
    values |= {name: value for name, value in fitted.items() if name in keys}
    return owner.mistakes(values, path)
