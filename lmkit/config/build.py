"""Builds the objects of a checked config."""

from collections.abc import Mapping
from dataclasses import is_dataclass
from datetime import timedelta
from typing import Any, get_args

from lmkit.config.safety import reveal
from lmkit.config.signatures import signature_keys
from lmkit.config.targets import BESIDE, beside, resolve_target, slot_bases
from lmkit.config.values import item_hint, object_bases
from lmkit.errors import UserError


def build(slot: str, node: Mapping[str, Any], **given: Any) -> Any:
    """Call the class named by a checked node of a slot, nested nodes first and secrets filled in.

    `given`: arguments from the code, of which the class gets those in its signature: a scheduler
    need not have `num_steps`. Raises UserError if the allowlist or the slot forbids the class.
    """
    return _build(node, slot_bases(slot), given)


def split_node(group: str, node: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A group, split into the node of its object and the keys of the class beside it."""
    keys: set[str] = set()
    if group in BESIDE:
        owner, given = beside(group)
        keys = set(signature_keys(owner)) - given
    own = {key: value for key, value in node.items() if key not in keys}
    return own, {key: value for key, value in node.items() if key in keys}


def _build(node: Mapping[str, Any], bases: tuple[type, ...], given: Mapping[str, Any]) -> Any:
    target = resolve_target(node["_target_"], bases)
    keys = signature_keys(target)
    arguments = {
        name: _value(value, keys[name].hint if name in keys else Any, given)
        for name, value in node.items()
        if name != "_target_"
    }
    return target(**arguments, **{name: given[name] for name in given if name in keys})


def _value(value: Any, hint: Any, given: Mapping[str, Any]) -> Any:
    arms = (hint, *get_args(hint))
    if isinstance(value, Mapping):
        if "_target_" in value:
            if bases := object_bases(hint):
                return _build(value, bases, given)
            raise UserError(f"expected a plain value, found a {value['_target_']}")
        plain = {key: _value(inner, Any, given) for key, inner in value.items()}
        record = next((arm for arm in arms if arm is timedelta or is_dataclass(arm)), None)
        return record(**plain) if isinstance(record, type) else plain
    if isinstance(value, list):
        return [_value(inner, item_hint(hint) or Any, given) for inner in value]
    return reveal(value) if isinstance(value, str) else value
