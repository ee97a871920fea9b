"""Reads the descriptions of keys out of docstrings, in lmkit's format and in Google's."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Collection


def described(text: str, keys: Collection[str]) -> dict[str, str]:
    """The entries `key: what it is` of a docstring, also `one, other: what they are`."""
    if not keys:
        return {}
    name = rf"(?:{'|'.join(map(re.escape, keys))})"
    begin = re.compile(
        rf"(?:^|(?<=[.;] ))({name}(?:, {name})*): |(?:\A|(?<=[.;:]\n))\w+(?:, \w+)*: ",
        re.MULTILINE,
    )  # the start of an entry, of keys or, at the beginning of a sentence, of other names
    lines: dict[str, str] = {}
    for paragraph in text.split("\n\n"):
        marks = list(begin.finditer(paragraph))
        ends = [*(mark.start() for mark in marks[1:]), len(paragraph)]
        for mark, end in zip(marks, ends, strict=False):
            line = " ".join(paragraph[mark.end() : end].split()).rstrip(".;")
            lines |= dict.fromkeys(mark[1].split(", ") if mark[1] else (), line)
    return lines


def google(text: str, keys: Collection[str]) -> dict[str, str]:
    """The first sentence of each entry under `Args:`, the format of torch and Lightning."""
    _, _, rest = text.partition("Args:\n")
    entry = re.compile(r"^(\w+)(?: ?\([^\n]*?\))?: ?(.*)")
    entries: dict[str, list[str]] = {}
    last, indent = None, None
    for line in textwrap.dedent(rest).splitlines():
        if line.strip() and not line[0].isspace() and indent not in (None, 0):
            break
        here = len(line) - len(line.lstrip())
        match = entry.match(line.strip())
        if line.strip() and indent is None:
            indent = here
        if match and here == indent and match[1] in keys:
            last = match[1]
            entries[last] = [match[2]]
        elif last and line.strip():
            if here == indent:
                last = None
            else:
                entries[last].append(line.strip())
    return {name: _first_sentence(" ".join(lines)) for name, lines in entries.items()}


def _first_sentence(text: str) -> str:
    text = re.sub(r"\s*\(default: [^)]*\)", "", text.replace("`", ""))
    return re.split(r"(?<=[a-z)])\.(?: |$)|  ", text.strip(), maxsplit=1)[0].strip()
