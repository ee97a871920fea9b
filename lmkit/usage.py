"""The text of `lmkit COMMAND --help`, made from the command's signature and docstring."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from typing import Any

from lmkit.config.docstrings import described
from lmkit.config.groups import OWN
from lmkit.config.keys import function_keys
from lmkit.overview import RUN

WIDTH = 100
FLAGS = {
    "--config-dir": ("--config-dir DIR", "config groups, and configs, of yours beside lmkit's"),
    "--config-name": ("--config-name NAME", "the config to start from, lmkit's or yours"),
    "--cfg": ("--cfg job", "print the config with all defaults, and end; --package model: a part"),
    "--info": ("--info defaults", "print which file each part of the config comes from, and end"),
    "--multirun": ("-m, --multirun", "a run for each combination of values a,b of several keys"),
}


def usage(command: Any) -> str:
    """What a command does and takes, and nothing that it does not."""
    keys = function_keys(command.module, command.function)
    words = "".join(
        f" [{word.upper()}]" if word in command.optional else f" {word.upper()}"
        for word in command.words
    )
    arguments = " [GROUP[=OPTION] ...]" if "selected" in command.positional else ""
    if keys or command.takes_config:
        arguments = " [key=value ...]"
    lines = [f"usage: lmkit {command.name}{words}{arguments}", "", *_prose(command.doc, [*keys])]
    if shown := examples(command):
        lines += ["", "examples:", *(f"  {example}" for example in shown)]
    if "run" in command.words:
        lines += ["", RUN]
    if keys:
        pairs = [
            (f"{name}={_default(k.default)}", f"({k.type}) {k.line}") for name, k in keys.items()
        ]
        lines += ["", "keys of its own:", *_columns(pairs)]
    if command.takes_config:
        lines += ["", "keys of the config:", *_config(command), "", OWN]
    flags = [FLAGS[flag] for flag in command.flags if flag in FLAGS]
    if flags:
        lines += ["", "flags:", *_columns(flags)]
    return "\n".join(lines)


def examples(command: Any) -> list[str]:
    """The example command lines in a command's docstring: its indented lines."""
    return [line.strip() for line in command.doc.splitlines() if line.startswith("    ")]


def _prose(doc: str, keys: Sequence[str]) -> list[str]:
    """A docstring's paragraphs up to the entries of keys, without its examples."""
    entry = re.compile(rf"^(?:{'|'.join([*keys, 'config'])})(?:, \w+)*: ", re.MULTILINE)
    found = entry.search(doc)
    text = doc[: found.start()] if found else doc
    paragraphs = [each for each in text.split("\n\n") if each.strip() and each[:4] != "    "]
    lines: list[str] = []
    for paragraph in paragraphs:
        lines += ["", *textwrap.wrap(" ".join(paragraph.split()), WIDTH)]
    return lines[1:]


def _config(command: Any) -> list[str]:
    uses = described(command.doc, ["config"]).get("config", "any may be set")
    where = "lmkit list data shows the keys of a group, lmkit train --cfg job those of all"
    return textwrap.wrap(f"{uses}; {where}", WIDTH, initial_indent="  ", subsequent_indent="  ")


def _default(source: str | None) -> str:
    """A default as it is written on the command line."""
    plain = {"None": "null", "True": "true", "False": "false", None: "..."}
    return plain.get(source, (source or "").strip("'"))


def _columns(pairs: Sequence[tuple[str, str]]) -> list[str]:
    width = max(len(name) for name, _ in pairs) + 4
    lines = []
    for name, text in pairs:
        indent = " " * width
        first = f"  {name}".ljust(width)
        lines += textwrap.wrap(text, WIDTH, initial_indent=first, subsequent_indent=indent)
    return lines
