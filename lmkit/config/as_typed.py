"""Restores what was typed for a key of text where Hydra or YAML has read a number or a date."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override, Quote, QuotedString
from hydra.plugins.config_source import ConfigResult
from omegaconf import OmegaConf
from omegaconf._utils import get_yaml_loader

from lmkit.config.keys import node_keys
from lmkit.system.paths import as_list

QUOTED = r"""'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*\""""
TEXT = {"str", "Path", "null", "None"}
TEXTS = {"list[str]", "Sequence[str]", "Iterable[str]", "tuple[str, ...]"}


def takes_text(hint: str) -> bool:
    """Whether a key of this type, as it is written in the source, accepts only text."""
    arms = set(hint.split(" | "))
    return "str" in arms and arms <= TEXT


def takes_texts(hint: str) -> bool:
    """Whether a key of this type accepts a list of texts."""
    arms = set(hint.split(" | "))
    return bool(arms & TEXTS) and arms <= TEXT | TEXTS


def find_misread(config: Mapping[str, Any]) -> dict[str, bool]:
    """The paths of a composed config that accept text but hold something else, such as the number
    12000.0 for `12e3`; the value is whether a list of texts is expected."""
    found = {}
    for path, key in node_keys(config).items():
        value, may_be_null = _at(config, path), "null" in key.type.split(" | ")
        if value is _ABSENT or isinstance(value, str) or (value is None and may_be_null):
            continue
        is_number = type(value) is int and "int" in key.type.split(" | ")  # as well as a text
        if takes_text(key.type.replace(" | int", "")) and not is_number:
            found[path] = False
        elif takes_texts(key.type) and isinstance(value, list) and not _all_texts(value):
            found[path] = True
    return found


def _all_texts(values: Collection[Any]) -> bool:
    return all(isinstance(each, str) for each in values)


_ABSENT = object()


def _at(config: Mapping[str, Any], path: str) -> Any:
    node: Any = config
    for part in path.split("."):
        if not isinstance(node, Mapping) or part not in node:
            return _ABSENT
        node = node[part]
    return node


def retyped(override: Override, misread: Mapping[str, bool]) -> Override:
    """An override whose value is the text that was typed, if it was misread."""
    key = override.key_or_group
    typed = (override.input_line or "").partition("=")[2].strip()
    # A value that is a text already was quoted, or refers to another key.
    if key not in misread or isinstance(override.value(), str):
        return override
    names = as_list(typed) if misread[key] else None
    value = quoted(typed) if names is None else f"[{','.join(map(quoted, names))}]"
    return OverridesParser.create().parse_override(f"++{key}={value}")


def text_keys(config: Mapping[str, Any]) -> set[str]:
    """The paths of a composed config that accept only text."""
    return {path for path, key in node_keys(config).items() if takes_text(key.type)}


def as_texts(line: str, keys: Collection[str]) -> str:
    """A line of Hydra's grammar; if its key is in `keys`, its values are quoted as typed."""
    override = OverridesParser.create().parse_override(line)
    key, typed, value = override.key_or_group, line.partition("=")[2].strip(), override.value()
    if key not in keys:
        return line
    values: list[Any] = [value]
    written = [typed]
    if isinstance(value, ChoiceSweep):
        values, written = list(value.list), parts(typed)
    elif override.is_sweep_override():
        return line
    if len(values) != len(written):  # choice(..)
        return line
    texts = [
        each if read is None or isinstance(read, str | QuotedString) else quoted(each)
        for read, each in zip(values, written, strict=True)
    ]
    return f"++{key}={','.join(texts)}"


def parts(text: str) -> list[str]:
    """The parts of `a,b,c` as they are spelled, split at commas outside of quotes and brackets."""
    matches = re.findall(rf"""(?:\\.|{QUOTED}|\[.*?\]|\{{.*?\}}|\(.*?\)|[^,])+""", text)
    return [match.strip() for match in matches]


def quoted(text: str) -> str:
    """Any text as a value in Hydra's grammar."""
    return QuotedString(literal(text), Quote.double).with_quotes()


def literal(text: str) -> str:
    """`text` escaped so that OmegaConf reads it back unchanged, except for secrets."""
    return re.sub(r"(\\*)\$\{(?!oc\.env:)", lambda m: m[1] * 2 + "\\${", text)


def unliteral(text: str) -> str:
    """The inverse of `literal`."""
    return re.sub(r"(\\+)\$\{(?!oc\.env:)", lambda m: "\\" * (len(m[1]) // 2) + "${", text)


class AsTyped(FileConfigSource):
    """Hydra's reader of a folder of configs, in which the keys in `misread` keep their text."""

    def __init__(self, provider: str, path: str, misread: Mapping[str, bool]) -> None:
        super().__init__(provider, path)
        self.misread = misread

    def load_config(self, config_path: str) -> ConfigResult:
        result = super().load_config(config_path)
        file = Path(self.path) / self._normalize_file_name(config_path)
        text = file.read_text(encoding="utf-8")
        tree = yaml.compose(text, Loader=get_yaml_loader())
        for path in self.misread:
            for inside in _inside(path, config_path):
                node = _find(tree, inside)
                if node is not None and not node.tag.endswith((":str", ":null")):
                    kept = _kept(node, text, self.misread[path])
                    OmegaConf.update(result.config, ".".join(inside), kept, force_add=True)
        return result


def _inside(path: str, file: str) -> Iterator[list[str]]:
    """The paths under which a file may have a key: from the root, or within its own group."""
    yield path.split(".")
    group = Path(file).parent.as_posix().replace("/", ".")
    if path.startswith(f"{group}."):
        yield path.removeprefix(f"{group}.").split(".")


def _find(node: Any, path: Collection[str]) -> Any:
    for part in path:
        pairs = node.value if isinstance(node, yaml.MappingNode) else []
        node = next((value for key, value in pairs if key.value == part), None)
    return node


def _kept(node: Any, text: str, several: bool) -> Any:
    if several and isinstance(node, yaml.SequenceNode):
        return [_kept(each, text, several=False) for each in node.value]
    if isinstance(node, yaml.ScalarNode):
        return literal(node.value)
    return literal(text[node.start_mark.index : node.end_mark.index])
