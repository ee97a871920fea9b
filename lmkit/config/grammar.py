"""Parses command lines in Hydra's grammar: its flags, the overrides, the spelling of values."""

import re
import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from lmkit.config.as_typed import quoted, retyped, takes_text, unliteral
from lmkit.config.groups import config_folders, group_options
from lmkit.config.keys import node_keys
from lmkit.config.mistakes import first_lines, nearest, report
from lmkit.errors import UserError
from lmkit.system.redaction import mask

# Keys of texts and paths, which may hold the commas, quotes and brackets that Hydra rejects.
VERBATIM = re.compile(
    r"(text|file|stop|outputs|store|(\w+\.)*prompt|(\w+\.)+\w*path|(\w+\.)+paths\.\w+)$"
)
# Keys like these, but null and a value in Hydra's own quotes are left to Hydra.
UNQUOTED = re.compile(r"(\w+\.)+(heading|delimiter|quote)$")
ASSIGNMENT = re.compile(r"(?P<sign>\+\+|\+|~)?(?P<key>[\w./@$:-]+)=(?P<value>.*)$", re.DOTALL)


def parse_flags(argv: Sequence[str], *, multirun: bool = False) -> Any:
    """Hydra's flags, and the `key=value` arguments as `.overrides`; raises UserError."""
    arguments, others = get_args_parser().parse_known_intermixed_args(list(argv))
    if dashed := [other for other in others if other.startswith("-")]:
        raise UserError(report([_without_dashes(flag, argv) for flag in dashed]))
    if arguments.multirun and not multirun:
        raise UserError("--multirun is for lmkit train, with no other of Hydra's flags that show")
    if arguments.experimental_rerun:
        raise UserError("--experimental-rerun is not supported: lmkit resume goes on with a run")
    if arguments.config_path:
        raise UserError("--config-path would hide lmkit's groups: add yours with --config-dir")
    return arguments


def _without_dashes(flag: str, argv: Sequence[str]) -> str:
    """What to type in place of a flag that Hydra does not have."""
    key, given, value = flag.lstrip("-").partition("=")
    if not given:
        following = [*argv, "--"][argv.index(flag) + 1]
        value = "true" if following.startswith("-") or "=" in following else following
    override = mask(f"{key.replace('-', '_')}={value}")
    as_key = f"keys have no dashes, as in {shlex.quote(override)}"
    return f"{mask(flag)} is no flag (--help lists those): {as_key}"


def hydra_arguments(argv: Sequence[str]) -> list[str]:
    """`argv` with its `key=value` arguments in Hydra's grammar; raises UserError."""
    arguments = parse_flags(argv)
    folders = config_folders(arguments.config_dir)
    mistakes: list[str] = []
    sort_overrides(arguments.overrides, folders, (), mistakes).settle({}, mistakes)
    if mistakes:
        raise UserError(report(mistakes))
    options = group_options(folders)
    return [normalise(a, options) if a in arguments.overrides else a for a in argv]


def normalise(argument: str, groups: Collection[str]) -> str:
    """`argument` in Hydra's grammar: values of verbatim keys are quoted, and keys that are not
    groups get a ++."""
    match = ASSIGNMENT.match(argument)
    if match is None:
        return argument
    sign, key, value = match["sign"], match["key"], match["value"]
    if _is_verbatim(key, value) and sign != "~":
        return f"++{key}={quoted(value)}"
    is_group = key.partition("@")[0] in groups and not value.startswith("{")
    return argument if sign or is_group else f"++{argument}"


def _is_verbatim(key: str, value: str) -> bool:
    if UNQUOTED.match(key):
        return value != "null" and not re.fullmatch(r"(['\"]).*\1", value, re.DOTALL)
    return bool(VERBATIM.match(key))


def spell(line: str, groups: Collection[str]) -> str:
    """The argument of which `normalise` makes `line`."""
    plain = line.removeprefix("++")
    key, _, written = plain.partition("=")
    if VERBATIM.match(key) or (UNQUOTED.match(key) and written.startswith('"')):
        override = OverridesParser.create().parse_override(line)
        value = override.value()
        text = value if isinstance(value, str) else override.get_value_element_as_str()
        text = unliteral(text)
        return f"{key}={text if _is_verbatim(key, text) else quoted(text)}"
    return plain if normalise(plain, groups) == line else line


@dataclass
class Sorted:
    """A sorted command line: choices of groups, values of the config, the command's own values.

    doubtful: by key, the mistake in a value, unless the key accepts text. several: by key, the
    arguments with several values.
    """

    groups: list[Override] = field(default_factory=list)
    values: list[Override] = field(default_factory=list)
    own: list[Override] = field(default_factory=list)
    doubtful: dict[str, str] = field(default_factory=dict)
    several: dict[str, str] = field(default_factory=dict)

    def lines(self, misread: Mapping[str, bool]) -> list[str]:
        """Choices and values in Hydra's grammar."""
        values = [retyped(value, misread) for value in self.values]
        return [override.input_line or "" for override in (*self.groups, *values)]

    def settle(self, config: Mapping[str, Any], mistakes: list[str]) -> bool:
        """Note doubtful values whose keys do not accept text, and leave them out; returns whether
        any were left out."""
        keys = node_keys(config)
        texts = {path for path, key in keys.items() if takes_text(key.type)}
        mistakes += [wrong for key, wrong in self.doubtful.items() if key not in texts]
        if several := [text for key, text in self.several.items() if key not in texts]:
            mistakes.append(
                f"{' and '.join(several)}: a run takes one value; for a run of each combination "
                "add -m (lmkit train -m ...) or take lmkit sweep; a list as one value is written "
                "[a,b]"
            )
        out = {*self.doubtful, *self.several} - texts
        self.values = [value for value in self.values if value.key_or_group not in out]
        return bool(out)


def sort_overrides(
    arguments: Sequence[str],
    folders: Sequence[Path],
    own: Collection[str] | None,
    mistakes: list[str],
) -> Sorted:
    """Sort the arguments, and note mistakes in them."""
    options = group_options(folders)
    done = Sorted()
    rejected: set[str] = set()
    for argument in arguments:
        match = ASSIGNMENT.match(argument)
        if match is None and not argument.startswith("~"):
            mistakes.append(f"{mask(argument)}: expected key=value")
            continue
        key, value = (match["key"], match["value"]) if match else (argument.removeprefix("~"), "")
        is_own = own is None or key.partition(".")[0] in own
        line = normalise(argument, options)
        if isinstance(own, Mapping) and _is_own_text(own.get(key, ""), value):
            line = f"++{key}={quoted(value)}"
        override, wrong = _parsed(argument, line)
        several = override is not None and override.is_sweep_override()
        if is_own and (override is None or several):
            listed = re.sub("=(.*)", r"=[\1]", mask(argument))
            mistakes.append(
                wrong or f"{mask(argument)}: takes one value; a list is written {listed}"
            )
        elif is_own:
            done.own += [override] if override else []
        elif key == "sweep":
            mistakes.append(f"{argument}: a preset of lmkit sweep, no part of a run")
        elif override is None or several:
            unsure = done.doubtful if override is None else done.several
            unsure[key] = wrong or mask(argument)
            if match and key not in options:
                done.values += filter(None, [_parsed(argument, f"++{key}={quoted(value)}")[0]])
        elif key in options and not isinstance(override.value(), dict):
            if not (unknown := _unknown_options(override, options[key])):
                done.groups.append(override)
            elif meant := get_close_matches(str(override.value()), options[key], n=1):
                # Its keys are checked against the option that the message suggests.
                done.groups += filter(None, [_parsed(argument, f"{key}={meant[0]}")[0]])
            else:
                rejected.add(key)
            mistakes += unknown
        else:
            done.values.append(override)
    # Keys of an option that does not exist are not mistakes of their own.
    done.values = [v for v in done.values if v.key_or_group.partition(".")[0] not in rejected]
    return done


def _is_own_text(hint: str, value: str) -> bool:
    """Whether a value of a command's own key is a text that is not in Hydra's quotes."""
    null = value == "null" and "None" in hint
    return takes_text(hint) and not null and not re.fullmatch(r"(['\"]).*\1", value, re.DOTALL)


def _parsed(argument: str, line: str) -> tuple[Override | None, str]:
    """The override of `argument`, which is `line` in Hydra's grammar; or None and the mistake."""
    try:
        return OverridesParser.create().parse_override(line), ""
    except HydraException as error:
        remedy = "put the value in quotes within the shell's, as 'key=\"value\"'"
        return None, f"{mask(argument)}: {first_lines(error)}; {remedy}"


def _unknown_options(override: Override, options: list[str]) -> list[str]:
    if override.is_delete():
        return []
    value = override.value()
    names = value if isinstance(value, list) else [value]
    group = override.key_or_group
    return [
        f"{group}={name}: no such option of {group}; {nearest(str(name), options)}"
        for name in map(_option_name, names)
        if name not in options
    ]


def _option_name(value: object) -> str:
    return "null" if value is None else str(value).removesuffix(".yaml")
