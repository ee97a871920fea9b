"""`lmkit train --cfg job`: the composed config as YAML, with every key that its classes have."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import yaml
from omegaconf import OmegaConf

from lmkit.config.compose import composed, resolved
from lmkit.config.grammar import parse_flags
from lmkit.config.keys import Key, node_keys, nodes
from lmkit.errors import UserError

BY_DEFAULT = "# by default"


def full_config(argv: list[str], name: str) -> str:
    """The text that `--cfg job` prints for a command line, with its `--package` and `--resolve`."""
    flags = parse_flags(argv)
    config = composed(argv, name)
    plain: Any = resolved(config) if flags.resolve else OmegaConf.to_container(config)
    missing = _missing(plain)
    if not flags.package:
        return "\n".join(_lines(plain, "", missing))
    path = flags.package.removesuffix(".")
    for part in path.split(".") if path != "_global_" else ():
        if not isinstance(plain, Mapping) or part not in plain:
            raise UserError(f"--package={flags.package}: the config has no {part}")
        plain = plain[part]
    at = "" if path == "_global_" else path
    inner = _lines(plain, at, missing) if isinstance(plain, Mapping) else [_dumped(plain)]
    return "\n".join([f"# @package {flags.package}", *inner])


def _missing(config: Mapping[str, Any]) -> dict[str, dict[str, Key]]:
    """The keys of each object that the config leaves to their defaults, by the object's path, which
    is "" for the root."""
    objects = dict(nodes(config)) | {"": config}
    missing: dict[str, dict[str, Key]] = {}
    for path, key in node_keys(config).items():
        owner, _, name = path.rpartition(".")
        if name not in objects.get(owner, {}):
            missing.setdefault(owner, {})[name] = key
    return missing


def _lines(
    node: Mapping[str, Any], path: str, missing: Mapping[str, Mapping[str, Key]]
) -> Iterator[str]:
    for name, value in node.items():
        if isinstance(value, Mapping) and value:
            yield f"{name}:"
            inner = f"{path}.{name}".removeprefix(".")
            yield from (f"  {line}" for line in _lines(value, inner, missing))
        else:
            yield from _dumped({name: value}).splitlines()
    for name, key in missing.get(path, {}).items():
        try:
            yield f"{name}: {_dumped(key.value, flow=True)}  {BY_DEFAULT}"
        except ValueError:
            yield f"# {name}: {key.default}"


def _dumped(value: Any, *, flow: bool = False) -> str:
    text = yaml.safe_dump(
        value, sort_keys=False, allow_unicode=True, default_flow_style=flow, width=math.inf
    )
    return text.removesuffix("...\n").rstrip("\n")
