"""Command line and YAML groups -> one plain nested config, with every mistake on the way noted."""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType
from typing import Any

from hydra import initialize_config_dir
from hydra._internal.hydra import Hydra
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.basecontainer import BaseContainer
from omegaconf.errors import OmegaConfBaseException

from lmkit.as_typed import (
    AsTyped,
    find_misread,
    literal,
    quoted,
    retyped,
    takes_text,
    unliteral,
)
from lmkit.errors import UserError
from lmkit.groups import config_folders, group_options, nearest
from lmkit.keys import node_keys
from lmkit.paths import as_list, exists, located, readable
from lmkit.redaction import mask
from lmkit.regular_file import DamagedError, read_yaml
from lmkit.renamed import renamed

# Hydra's grammar rejects commas, quotes and brackets, which texts and paths are free to hold.
VERBATIM = re.compile(
    r"(text|file|stop|outputs|store|(\w+\.)*prompt|(\w+\.)+\w*path|(\w+\.)+paths\.\w+)$"
)
# These too, but for null and for what somebody has put in Hydra's quotes.
UNQUOTED = re.compile(r"(\w+\.)+(heading|delimiter|quote)$")
ASSIGNMENT = re.compile(r"(?P<sign>\+\+|\+|~)?(?P<key>[\w./@$:-]+)=(?P<value>.*)$", re.DOTALL)


@dataclass
class Composition:
    """What the command line asks for: a config, the command's own keys, the mistakes so far."""

    config: dict[str, Any] = field(default_factory=dict)
    own: dict[str, Any] = field(default_factory=dict)
    overrides: list[str] = field(default_factory=list)
    mistakes: list[str] = field(default_factory=list)


def compose(
    argv: Sequence[str],
    base: Path | None = None,
    own: Collection[str] | None = (),
    name: str = "train",
) -> Composition:
    """Compose `conf/<name>.yaml`, or an existing run's `config.yaml` as `base`, with `argv`.

    `own` names the root keys that belong to the command and not to the config, a mapping with
    their types; with None all of them do, and nothing is composed.
    """
    arguments = parse_flags(argv)
    folders = config_folders(arguments.config_dir)
    done = Composition(overrides=list(arguments.overrides))
    if base is not None and arguments.config_name:
        raise UserError(
            f"--config-name={arguments.config_name}: the command starts from the config of its "
            "run; set keys of it, or choose options of its groups"
        )
    given = _sort_overrides(arguments.overrides, folders, own, done.mistakes)
    for line in (override.input_line or "" for override in (*given.groups, *given.values)):
        if readable(line) != line:
            done.mistakes.append(
                f"{readable(line).lstrip('+')}: not UTF-8, in which a config is written; name a "
                "file that is called so by its directory or a glob"
            )

    def config(misread: Mapping[str, bool]) -> dict[str, Any]:
        if base is None:
            lines = given.lines(misread)
            return resolved(_hydra(folders, arguments.config_name or name, lines, misread))
        config = _fresh_groups(_read(base), given.groups, folders, misread)
        return resolved(_merge(config, [retyped(value, misread) for value in given.values]))

    try:
        done.own = resolved(_merge(OmegaConf.create(), given.own))
        if own is not None:
            done.mistakes += _no_new_groups(given.groups, base)
            done.config = config({})
            wrong = find_misread(done.config)
            if given.settle(done.config, done.mistakes) or wrong:
                done.config = config(wrong)
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise UserError(report([*done.mistakes, first_lines(error)])) from error
    _anchor_paths(done.config)
    return done


def parse_flags(argv: Sequence[str], *, multirun: bool = False) -> Any:
    """Hydra's own flags apart from the `key=value` arguments (`.overrides`)."""
    arguments = get_args_parser().parse_intermixed_args(list(argv))
    if arguments.multirun and not multirun:
        raise UserError("--multirun is for lmkit train, with no other of Hydra's flags that show")
    if arguments.experimental_rerun:
        raise UserError("--experimental-rerun is not supported: lmkit resume goes on with a run")
    if arguments.config_path:
        raise UserError("--config-path would hide lmkit's groups: add yours with --config-dir")
    return arguments


def hydra_arguments(argv: Sequence[str]) -> list[str]:
    """`argv` with its `key=value` arguments in Hydra's grammar; raises UserError."""
    arguments = parse_flags(argv)
    folders = config_folders(arguments.config_dir)
    mistakes: list[str] = []
    _sort_overrides(arguments.overrides, folders, (), mistakes).settle({}, mistakes)
    if mistakes:
        raise UserError(report(mistakes))
    options = group_options(folders)
    return [normalise(a, options) if a in arguments.overrides else a for a in argv]


def normalise(argument: str, groups: Collection[str]) -> str:
    """`argument` as Hydra reads it: verbatim keys quoted, keys that name no group forced in."""
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
    """The argument that `normalise` makes `line` of."""
    plain = line.removeprefix("++")
    key, _, written = plain.partition("=")
    if VERBATIM.match(key) or (UNQUOTED.match(key) and written.startswith('"')):
        override = OverridesParser.create().parse_override(line)
        value = override.value()
        text = value if isinstance(value, str) else override.get_value_element_as_str()
        text = unliteral(text)
        return f"{key}={text if _is_verbatim(key, text) else quoted(text)}"
    return plain if normalise(plain, groups) == line else line


def report(mistakes: Sequence[str]) -> str:
    """All mistakes, one a line, under their count."""
    count = f"{len(mistakes)} mistake{'s' if len(mistakes) > 1 else ''}:"
    return "\n".join([count, *(f"  {mistake}" for mistake in mistakes)])


def reported(error: UserError) -> list[str]:
    """The mistakes of a `report`; any other error is one."""
    first, *lines = str(error).splitlines()
    is_report = re.fullmatch(r"\d+ mistakes?:", first)
    return [line.removeprefix("  ") for line in lines] if is_report else [str(error)]


@dataclass
class Sorted:
    """A command line: choices of a group, values of the config, values of the command.

    doubtful: by key, what of the values is a mistake unless the key takes text. several: arguments
    with several values.
    """

    groups: list[Override] = field(default_factory=list)
    values: list[Override] = field(default_factory=list)
    own: list[Override] = field(default_factory=list)
    doubtful: dict[str, str] = field(default_factory=dict)
    several: dict[str, str] = field(default_factory=dict)

    def lines(self, misread: Mapping[str, bool]) -> list[str]:
        """Choices and values as Hydra reads them."""
        values = [retyped(value, misread) for value in self.values]
        return [override.input_line or "" for override in (*self.groups, *values)]

    def settle(self, config: Mapping[str, Any], mistakes: list[str]) -> bool:
        """Note what is doubtful and no text, and leave it out; whether there was any."""
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


def _sort_overrides(
    arguments: Sequence[str],
    folders: Sequence[Path],
    own: Collection[str] | None,
    mistakes: list[str],
) -> Sorted:
    """The arguments sorted; the wrong ones noted."""
    options = group_options(folders)
    done = Sorted()
    rejected: set[str] = set()
    for argument in arguments:
        match = ASSIGNMENT.match(argument)
        if match is None and not argument.startswith("~"):
            mistakes.append(f"{mask(argument)}: expected key=value")
            continue
        key, value = (match["key"], match["value"]) if match else (argument.removeprefix("~"), "")
        mine = own is None or key.partition(".")[0] in own
        line = normalise(argument, options)
        if isinstance(own, Mapping) and _is_own_text(own.get(key, ""), value):
            line = f"++{key}={quoted(value)}"
        override, wrong = _parsed(argument, line)
        several = override is not None and override.is_sweep_override()
        if mine and (override is None or several):
            listed = re.sub("=(.*)", r"=[\1]", mask(argument))
            mistakes.append(
                wrong or f"{mask(argument)}: takes one value; a list is written {listed}"
            )
        elif mine:
            done.own += [override] if override else []
        elif key == "sweep":
            mistakes.append(f"{argument}: a preset of lmkit sweep, no part of a run")
        elif override is None or several:
            there = done.doubtful if override is None else done.several
            there[key] = wrong or mask(argument)
            if match and key not in options:
                done.values += filter(None, [_parsed(argument, f"++{key}={quoted(value)}")[0]])
        elif key in options and not isinstance(override.value(), dict):
            if not (unknown := _unknown_options(override, options[key])):
                done.groups.append(override)
            elif meant := get_close_matches(str(override.value()), options[key], n=1):
                # The one that will be named in the message is what its keys are checked against.
                done.groups += filter(None, [_parsed(argument, f"{key}={meant[0]}")[0]])
            else:
                rejected.add(key)
            mistakes += unknown
        else:
            done.values.append(override)
    # Keys of an option that there is not are no mistakes of their own.
    done.values = [v for v in done.values if v.key_or_group.partition(".")[0] not in rejected]
    return done


def _is_own_text(hint: str, value: str) -> bool:
    """Whether a value of a command's own key is a text as it stands, not in Hydra's quotes."""
    null = value == "null" and "None" in hint
    return takes_text(hint) and not null and not re.fullmatch(r"(['\"]).*\1", value, re.DOTALL)


def _parsed(argument: str, line: str) -> tuple[Override | None, str]:
    """`argument`, written as Hydra reads it, as an override, or what is wrong with it."""
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


def composed(argv: Sequence[str], name: str = "train") -> DictConfig:
    """What Hydra makes of a command line, interpolations unresolved; raises UserError."""
    arguments = parse_flags(argv)
    folders = config_folders(arguments.config_dir)
    name = arguments.config_name or name
    mistakes: list[str] = []
    given = _sort_overrides(arguments.overrides, folders, (), mistakes)
    try:
        config = _hydra(folders, name, given.lines({}))
        plain: Any = OmegaConf.to_container(config)
        wrong = find_misread(plain)
        if given.settle(plain, mistakes) or wrong:
            config = _hydra(folders, name, given.lines(wrong), wrong)
    except (HydraException, OmegaConfBaseException) as error:
        mistakes.append(first_lines(error))
    if mistakes:
        raise UserError(report(mistakes))
    return config


def _hydra(
    folders: Sequence[Path],
    name: str,
    overrides: list[str],
    misread: Mapping[str, bool] = MappingProxyType({}),
) -> DictConfig:
    check_config_name(name, folders)
    with hydra_over(folders, misread) as hydra:
        config = hydra.compose_config(name, overrides, RunMode.RUN, with_log_configuration=False)
        with open_dict(config):
            del config["hydra"]
        return config


@contextmanager
def hydra_over(
    folders: Sequence[Path], misread: Mapping[str, bool] = MappingProxyType({})
) -> Iterator[Hydra]:
    """Hydra over lmkit's groups and the user's, which may have configs to start from too.

    misread: see `AsTyped`.
    """
    with initialize_config_dir(str(folders[0]), job_name="lmkit", version_base="1.3"):
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        # By `hydra.searchpath` alone, neither a primary config nor `glob` would be found.
        loader: Any = hydra.config_loader
        path = loader.get_search_path()
        schema = path.get_path().pop()
        for folder in folders[1:]:
            path.append("lmkit", f"file://{folder}")
        path.append(schema.provider, schema.path)
        loader.repository.initialize_sources(path)
        loader.repository.sources = [
            AsTyped(source.provider, source.path, misread)
            if misread and source.scheme() == AsTyped.scheme()
            else source
            for source in loader.repository.sources
        ]
        yield hydra


def check_config_name(name: str, folders: Sequence[Path]) -> None:
    """Raises UserError where no folder has a config of this name to start from."""
    there = {file.stem for folder in folders for file in folder.glob("*.yaml")}
    if name.removesuffix(".yaml") not in there:
        raise UserError(f"--config-name={name}: no such config; {nearest(name, there)}")


def _no_new_groups(groups: Sequence[Override], base: Path | None) -> list[str]:
    """The mistakes of choices that an existing run cannot take."""
    config = _read(base) if base else {}
    return [
        f"{o.input_line}: sets up a new run; an existing run takes {', '.join(map(str, config))}"
        for o in groups
        if base and o.key_or_group not in config
    ]


def _fresh_groups(
    config: DictConfig,
    groups: Sequence[Override],
    folders: Sequence[Path],
    misread: Mapping[str, bool],
) -> DictConfig:
    """`config` with each chosen group composed afresh, untouched by the default experiment."""
    usable = [o for o in groups if o.key_or_group in config]
    if usable:
        lines = ["~experiment", *(o.input_line or "" for o in usable)]
        fresh = _hydra(folders, "train", lines, misread)
        for override in usable:
            config[override.key_or_group] = fresh[override.key_or_group]
    return config


def _merge(config: DictConfig, overrides: list[Override]) -> DictConfig:
    for override in overrides:
        parent, _, key = override.key_or_group.rpartition(".")
        if override.is_delete():
            node = OmegaConf.select(config, parent) if parent else config
            if not isinstance(node, DictConfig) or key not in node:
                raise ValueError(f"{override.input_line}: there is no {override.key_or_group}")
            del node[key]
        else:
            OmegaConf.update(config, override.key_or_group, override.value(), force_add=True)
    return config


def resolved(config: DictConfig) -> dict[str, Any]:
    """Plain containers with every interpolation resolved except secrets (`${oc.env:...}`)."""
    resolvers = BaseContainer._resolvers  # OmegaConf has no public way to put one back
    before = resolvers["oc.env"]
    OmegaConf.register_new_resolver("oc.env", _kept, replace=True)
    try:
        plain = OmegaConf.to_container(config, resolve=True)
    finally:
        resolvers["oc.env"] = before
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def _kept(name: str, *default: Any) -> str:
    """In place of OmegaConf's `oc.env`, which other resolvers may call too: what was written."""
    words = ["null" if word is None else str(word) for word in (name, *default)]
    return f"${{oc.env:{','.join(words)}}}"


def _read(path: Path) -> DictConfig:
    """A run's config, whose only interpolations are secrets: any other `${` stands for itself."""
    try:
        loaded = read_yaml(path)
    except FileNotFoundError:
        raise UserError(f"{path}: there is no config of a run") from None
    if not loaded:
        raise DamagedError(path, "is damaged: it holds no config of a run")
    return OmegaConf.create(_map_strings(renamed(loaded), literal))


def _map_strings(value: Any, change: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _map_strings(inner, change) for key, inner in value.items()}
    if isinstance(value, list):
        return [_map_strings(inner, change) for inner in value]
    return change(value) if isinstance(value, str) else value


def _anchor_paths(config: dict[str, Any]) -> None:
    """Make paths that exist absolute, so that the run is found again from anywhere."""
    if isinstance(config.get("outputs"), str):
        config["outputs"] = str(Path(config["outputs"]).expanduser().absolute())
    for group in ("data", "tokenizer"):
        node = config.get(group)
        if not isinstance(node, dict):
            continue
        for key, value in node.items():
            if key.endswith("path"):
                several = as_list(value) if isinstance(value, str) and group == "data" else None
                node[key] = _map_strings(value if several is None else several, _anchored)
            elif key == "paths" and isinstance(value, dict):
                node[key] = {name: _map_strings(path, _anchored) for name, path in value.items()}


def _anchored(path: str) -> str:
    place = str(located(path))
    glob = re.match(r"(?:([^*?\[]*)/)?[^*?\[/]*[*?\[]", place)
    is_there = exists(place) or (glob and exists(glob[1] or "."))
    return str(Path(place).absolute()) if is_there and path != "???" else path


def first_lines(error: Exception) -> str:
    """The message of an error of Hydra, YAML or OmegaConf, without its pointers to the web."""
    lines = [line.strip() for line in str(error).splitlines()]
    kept = [line for line in lines if line and not line.startswith(("See https", "Config search"))]
    return " ".join(line for line in kept if "provider=" not in line)
