"""Finds values that would write a secret to disk, or write outside the run directory."""

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

# The groups from which a run reads; values of other groups are written to disk, as by loggers.
READS = ("data", "tokenizer")
WRITES = ("logger", "callbacks", "trainer")
# Keys of lightning's classes that name a directory, relative to the current one.
DIRECTORIES = ("dirpath", "dir", "root_dir", "exclude_batches_path", "artifact_location")
# A config refers to a secret by the environment variable that holds it.
SECRET = re.compile(r"\$\{oc\.env:\s*(?P<name>[^,}\s]+)\s*(?:,(?P<default>[^}]*))?\}")
# The variables that os.path.expandvars replaces, which lightning calls.
VARIABLE = re.compile(r"\$(\w|\{(?!oc\.env:))", re.ASCII)
OUTSIDE = re.compile(r"[/\\~]|\w:[/\\]|file:|(.*[/\\])?\.\.([/\\]|$)", re.IGNORECASE | re.DOTALL)


def leaks(config: Mapping[str, Any], trains: bool) -> Iterator[str]:
    """Every secret that a config would write to disk; messages leave its value out, and it is
    redacted from now on.

    Without `trains` nothing is written; a secret in plain text is a mistake even so.
    """
    for path, value in _leaves(config):
        if value is None or isinstance(value, bool) or value in ("", "???"):
            continue
        text, parts = str(value), path.split(".")
        variables = [match["name"] for match in SECRET.finditer(text)]
        if any(map(is_secret_key, (parts[-1], *parts[2:]))):  # the second part is an object's name
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
    """Every path of something to write that leads out of the run directory, or that contains an
    environment variable."""
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
    """A node in which the directories of lightning's classes are moved inside `directory`."""
    if not isinstance(node, Mapping):
        return node
    return {
        key: str(directory / value)
        if key in DIRECTORIES and isinstance(value, str) and _is_foreign(node)
        else anchored(value, directory)
        for key, value in node.items()
    }


def _leaves(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every plain value by dotted key; the items of a list have the list's key."""
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
    """Whether an object's class is from lightning or torch, not from lmkit or the user."""
    package = str(node.get("_target_", "")).partition(".")[0]
    return package in PREFIXES and package != "lmkit"


def _hide_literal(text: str) -> None:
    """Redact a value from now on, and the literal parts of one that refers to variables too."""
    literal = SECRET.sub(lambda match: f"\0{match['default'] or ''}\0", text)
    for each in (text, *literal.split("\0")):
        hide(each)


def _holds_user(variable: str) -> bool:
    value = os.environ.get(variable, "")
    return len(value) >= SHORTEST and bool(USER_INFO.search(value))


def reveal(text: str) -> str:
    """`text` with every `${oc.env:NAME}` replaced; raises UserError if a variable is not set."""

    def read(match: re.Match[str]) -> str:
        name, default = match["name"], match["default"]
        if name in os.environ:
            hide(os.environ[name], f"${{oc.env:{name}}}")
            return os.environ[name]
        if default is None:
            raise UserError(f"the environment variable {name} is not set")
        return default

    return SECRET.sub(read, text)
