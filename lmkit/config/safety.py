"""Values of a config that would write down a secret, or write outside the run directory."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lmkit.errors import UserError
from lmkit.system.allowed import PREFIXES
from lmkit.system.redaction import (
    SHORTEST,
    USER_INFO,
    hide,
    is_secret_key,
    is_secret_variable,
    secret_variable_in,
)

# Where a run reads from; what other groups hold is written down, by loggers above all.
READS = ("data", "tokenizer")
WRITES = ("logger", "callbacks", "trainer")
# Keys of lightning's classes that name a directory, which is taken from the current one.
DIRECTORIES = ("dirpath", "dir", "root_dir", "exclude_batches_path", "artifact_location")
# A secret is written as the variable of the environment that holds it.
SECRET = re.compile(r"\$\{oc\.env:\s*(?P<name>[^,}\s]+)\s*(?:,(?P<default>[^}]*))?\}")
# As os.path.expandvars has it, which lightning calls.
VARIABLE = re.compile(r"\$(\w|\{(?!oc\.env:))", re.ASCII)
OUTSIDE = re.compile(r"[/\\~]|\w:[/\\]|file:|(.*[/\\])?\.\.([/\\]|$)", re.IGNORECASE | re.DOTALL)


def leaks(config: Mapping[str, Any], trains: bool) -> Iterator[str]:
    """Every secret that a config would write down, its value left out of the message and hidden.

    Without `trains` nothing is written; what is read may still not be a secret.
    """
    for path, value in _leaves(config):
        if value is None or isinstance(value, bool) or value in ("", "???"):
            continue
        text, parts = str(value), path.split(".")
        variables = [match["name"] for match in SECRET.finditer(text)]
        if any(map(is_secret_key, (parts[-1], *parts[2:]))):  # the second is a name
            match = SECRET.fullmatch(text)
            if match is None or match["default"] is not None:
                _hide_literal(text)
                yield (
                    f"{path}: a secret would be written into the run directory: put it into the "
                    "environment and write '${oc.env:NAME}'"
                )
        elif USER_INFO.search(text) or any(map(_holds_user, variables)):
            yield (
                f"{path}: the URL holds a user or password, which would be written into the run "
                "directory: leave it out and log in by other means, as ~/.netrc"
            )
        elif secret := next(filter(is_secret_variable, variables), secret_variable_in(text)):
            yield f"{path}: holds the value of {secret}, a secret by its name: leave it out"
        elif variables and trains and path.partition(".")[0] not in READS:
            yield (
                f"{path}: what ${{oc.env:{variables[0]}}} reveals would be written into the run "
                f"directory: write it out, or keep it to {' and '.join(READS)}"
            )


def escapes(config: Mapping[str, Any]) -> Iterator[str]:
    """Every name of an artefact that leads out of the run directory, or to one named after a
    variable's value."""
    for group in WRITES:
        for path, value in _foreign(config.get(group), group):
            if isinstance(value, str) and OUTSIDE.match(value):
                yield (
                    f"{path}={value}: leads out of the run directory, and a run writes there "
                    "alone: give a relative path without .."
                )
            elif isinstance(value, str) and VARIABLE.search(value):
                yield (
                    f"{path}={value}: lightning would put the value of a variable of the "
                    "environment in the place of the $: leave it out"
                )


def anchored(node: Any, directory: Path) -> Any:
    """A node with the directories that lightning's classes are to write to inside `directory`."""
    if not isinstance(node, Mapping):
        return node
    return {
        key: str(directory / value)
        if key in DIRECTORIES and isinstance(value, str) and _is_foreign(node)
        else anchored(value, directory)
        for key, value in node.items()
    }


def _leaves(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every plain value by dotted key; those of a list by that of the list."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield from _leaves(value, f"{path}.{key}" if path else str(key))
    elif isinstance(node, list | tuple):
        for value in node:
            yield from _leaves(value, path)
    else:
        yield path, node


def _foreign(node: Any, path: str) -> Iterator[tuple[str, Any]]:
    """The leaves that belong to objects of lightning and torch."""
    for key, value in node.items() if isinstance(node, Mapping) else ():
        if isinstance(value, Mapping) and ("_target_" in value or "_target_" not in node):
            yield from _foreign(value, f"{path}.{key}")
        elif key != "_target_" and _is_foreign(node):
            yield from _leaves(value, f"{path}.{key}")


def _is_foreign(node: Mapping[str, Any]) -> bool:
    """Whether an object is of a package that lmkit allows and the user did not write."""
    package = str(node.get("_target_", "")).partition(".")[0]
    return package in PREFIXES and package != "lmkit"


def _hide_literal(text: str) -> None:
    """Hide a value, and what is literal of one that reveals something too."""
    literal = SECRET.sub(lambda match: f"\0{match['default'] or ''}\0", text)
    for piece in (text, *literal.split("\0")):
        hide(piece)


def _holds_user(variable: str) -> bool:
    value = os.environ.get(variable, "")
    return len(value) >= SHORTEST and bool(USER_INFO.search(value))


def reveal(text: str) -> str:
    """`text` with every `${oc.env:NAME}` replaced; raises UserError for one that is not set."""

    def read(match: re.Match[str]) -> str:
        name, default = match["name"], match["default"]
        if name in os.environ:
            hide(os.environ[name], f"${{oc.env:{name}}}")
            return os.environ[name]
        if default is None:
            raise UserError(f"the environment variable {name} is not set")
        return default

    return SECRET.sub(read, text)
