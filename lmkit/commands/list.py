"""`lmkit list`: the config groups, their options, and the keys of an option, a line each."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lmkit.config.compose import compose
from lmkit.config.groups import OWN, config_folders, group_options, purpose
from lmkit.config.keys import Key, is_found, node_keys, nodes
from lmkit.config.mistakes import nearest, report
from lmkit.config.targets import SLOTS
from lmkit.errors import UserError
from lmkit.system.allowed import ABSENT, allowed_prefixes, remedy, under

log = logging.getLogger(__name__)

WIDTH = 120  # if there is no terminal
LONGEST = 36  # characters of a type; the rest of a longer one is left out


def list(
    selected: Sequence[str], commands: Mapping[str, str], config_dir: str | None = None
) -> dict[str, Any]:
    """Show the config groups with their options and all commands; of an option, all its keys.

        lmkit list
        lmkit list model
        lmkit list data=files optimizer=sgd

    The default of a key is what a training would begin with.
    """
    folders = config_folders(config_dir)
    if selected:
        return _keys(selected, folders, config_dir)
    groups = {
        group: {option: purpose(folders, group, option) for option in options}
        for group, options in group_options(folders).items()
    }
    titles = {f"{group}=": options for group, options in groups.items()}
    _show({**titles, "commands": dict(commands)})
    print("\nlmkit list GROUP=OPTION shows the keys of an option, as lmkit list data=files")
    print(OWN)
    return {**groups, "commands": dict(commands)}


def _keys(
    selected: Sequence[str], folders: Sequence[Path], config_dir: str | None
) -> dict[str, Any]:
    """Options and keys of the groups selected as GROUP or GROUP=OPTION."""
    options = group_options(folders)
    mistakes = []
    for argument in selected:
        group, _, option = argument.partition("=")
        if group not in options:
            mistakes.append(f"{group}: no such group; {nearest(group, options)}")
        elif option and option not in options[group]:
            there = nearest(option, options[group])
            mistakes.append(f"{argument}: no such option of {group}; {there}")
    if mistakes:
        raise UserError(report(mistakes))
    flags = [f"--config-dir={config_dir}"] if config_dir else []
    chosen = [each for each in selected if "=" in each and not each.startswith("sweep=")]
    config = compose([*flags, *chosen]).config
    result: dict[str, Any] = {}
    for argument in selected:
        group, _, option = argument.partition("=")
        entry: dict[str, Any] = result.setdefault(argument, {})
        if option:
            print(f"{argument}  {purpose(folders, group, option)}")
        else:
            entry["options"] = {o: purpose(folders, group, o) for o in options[group]}
            _show({f"{group}=": entry["options"]})
        if group in SLOTS:
            _warn_of_missing(config, group)
            entry["keys"] = _keys_of_group(config, group)
            _show_keys(entry["keys"], f"{group}=" if not option else "", config)
        elif option:
            file = next(f for f in (d / group / f"{option}.yaml" for d in folders) if f.is_file())
            entry["file"] = file.read_text(encoding="utf-8")
            print(entry["file"].rstrip())
    return result


def _warn_of_missing(config: Mapping[str, Any], group: str) -> None:
    for target in _targets(config, group):
        if not is_found(target):
            why = ABSENT if under(target, allowed_prefixes()) else remedy(target)
            log.warning("%s is not found, nor what keys it has%s", target, why)


def _keys_of_group(config: Mapping[str, Any], group: str) -> dict[str, dict[str, Any]]:
    """Type, default and description of each key; the default is the value a training would have."""
    keys = {k: key for k, key in node_keys(config).items() if k.partition(".")[0] == group}
    set_here = {
        f"{path}.{name}": value
        for path, node in nodes(config)
        for name, value in node.items()
        if name != "_target_"
    }
    return {
        path: {
            "type": key.type,
            "default": set_here[path] if path in set_here else _default(key),
            "required": set_here.get(path, key.default) in (None, "???") and key.default is None,
            "line": key.line,
        }
        for path, key in keys.items()
    }


def _default(key: Key) -> Any:
    try:
        return key.value
    except ValueError:
        return key.default


def _show_keys(
    keys: Mapping[str, Mapping[str, Any]], group: str, config: Mapping[str, Any]
) -> None:
    if not keys:
        return
    if group:
        targets = ", ".join(_targets(config, group.removesuffix("=")))
        print(f"keys, where none is chosen, of {targets}")
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column()
    for path, key in keys.items():
        value = "..." if key["required"] else _yaml(key["default"])
        words = key["type"] if len(key["type"]) <= LONGEST else f"{key['type'][:LONGEST]}.."
        line = Text.assemble((f"({words}) ", "dim"), key["line"])
        table.add_row(Text(f"  {path}={value}"), line)
    console = Console()
    console.print(table) if console.is_terminal else Console(width=WIDTH).print(table)


def _targets(config: Mapping[str, Any], group: str) -> Sequence[str]:
    return [n["_target_"] for path, n in nodes(config) if path.partition(".")[0] == group]


def _yaml(value: Any) -> str:
    """A value as it is written on the command line."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple | Sequence) and not isinstance(value, str):
        return f"[{','.join(map(_yaml, value))}]"
    return str(value)


def _show(titles: Mapping[str, Mapping[str, str]]) -> None:
    width = max((len(name) for names in titles.values() for name in names), default=0)
    for title, names in titles.items():
        print(title)
        for name, text in names.items():
            print(f"  {name:<{width}}  {text}")
