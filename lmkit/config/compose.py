"""Composes a command line and YAML groups into one plain nested config, and notes mistakes."""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml
from hydra import initialize_config_dir
from hydra._internal.hydra import Hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.basecontainer import BaseContainer
from omegaconf.errors import OmegaConfBaseException

from lmkit.config.as_typed import AsTyped, find_misread, literal, retyped
from lmkit.config.grammar import parse_flags, sort_overrides
from lmkit.config.groups import config_folders
from lmkit.config.inherited import INHERITED, inherited
from lmkit.config.mistakes import first_lines, nearest, report
from lmkit.errors import UserError
from lmkit.run.renamed import renamed, retargeted
from lmkit.system.paths import as_list, exists, located, readable
from lmkit.system.regular_file import DamagedError, read_yaml


@dataclass
class Composition:
    """A composed command line: the config, the command's own keys, and the mistakes so far."""

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

    `own`: the root keys that belong to the command and not to the config, if a mapping with their
    types; with None all keys belong to the command, and nothing is composed.
    """
    arguments = parse_flags(argv)
    folders = config_folders(arguments.config_dir)
    done = Composition(overrides=list(arguments.overrides))
    if base is not None and arguments.config_name:
        raise UserError(
            f"--config-name={arguments.config_name}: the command starts from the config of its "
            "run; set keys of it, or choose options of its groups"
        )
    overrides = sort_overrides(arguments.overrides, folders, own, done.mistakes)
    for line in (override.input_line or "" for override in (*overrides.groups, *overrides.values)):
        if readable(line) != line:
            done.mistakes.append(
                f"{readable(line).lstrip('+')}: not UTF-8, in which a config is written; name a "
                "file that is called so by its directory or a glob"
            )

    def config(misread: Mapping[str, bool]) -> dict[str, Any]:
        if base is None:
            lines = overrides.lines(misread)
            return resolved(_hydra(folders, arguments.config_name or name, lines, misread))
        config = _fresh_groups(_read(base), overrides.groups, folders, misread)
        return resolved(_merge(config, [retyped(value, misread) for value in overrides.values]))

    try:
        done.mistakes += _set_twice(overrides.own)
        done.own = resolved(_merge(OmegaConf.create(), overrides.own))
        if own is not None:
            done.mistakes += _no_new_groups(overrides.groups, base)
            done.config = config({})
            wrong = find_misread(done.config)
            if overrides.settle(done.config, done.mistakes) or wrong:
                done.config = config(wrong)
    except (HydraException, OmegaConfBaseException, ValueError, yaml.YAMLError) as error:
        raise UserError(report([*done.mistakes, first_lines(error)])) from error
    done.config = retargeted(done.config)  # a user's files may have older names of classes
    if base is None and done.config.get("init"):
        theirs = inherited(done.config, overrides.groups, overrides.values, done.mistakes)
        named = [v for v in overrides.values if v.key_or_group.partition(".")[0] in INHERITED]
        changed = _merge(
            OmegaConf.create(_map_strings({k: theirs[k] for k in INHERITED}, literal)), named
        )
        done.config = {**theirs, **resolved(changed)}
    _anchor_paths(done.config)
    return done


def _set_twice(own: Sequence[Override]) -> Iterator[str]:
    """The mistakes of a command's keys that are set as a whole and in parts, of which the last
    would replace the others."""
    whole = {each.key_or_group: each.input_line or "" for each in own}
    for key, line in whole.items():
        first, dot, _ = key.partition(".")
        if dot and first in whole:
            both = f"{readable(whole[first])} and {readable(line)}".replace("++", "")
            yield f"{both}: name the first by its key too, as {first}.KEY=..."


def composed(argv: Sequence[str], name: str = "train") -> DictConfig:
    """The config that Hydra composes for a command line, not resolved; raises UserError."""
    arguments = parse_flags(argv)
    folders = config_folders(arguments.config_dir)
    name = arguments.config_name or name
    mistakes: list[str] = []
    overrides = sort_overrides(arguments.overrides, folders, (), mistakes)
    try:
        config = _hydra(folders, name, overrides.lines({}))
        plain: Any = OmegaConf.to_container(config)
        wrong = find_misread(plain)
        if overrides.settle(plain, mistakes) or wrong:
            config = _hydra(folders, name, overrides.lines(wrong), wrong)
    except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
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
    """Hydra with lmkit's config folder and the user's, which may also have primary configs.

    misread: see `AsTyped`.
    """
    with initialize_config_dir(str(folders[0]), job_name="lmkit", version_base="1.3"):
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        # With `hydra.searchpath` alone Hydra finds neither primary configs nor options for `glob`.
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
    """Raise UserError if no folder has a primary config of this name."""
    there = {file.stem for folder in folders for file in folder.glob("*.yaml")}
    if name.removesuffix(".yaml") not in there:
        raise UserError(f"--config-name={name}: no such config; {nearest(name, there)}")


def _no_new_groups(groups: Sequence[Override], base: Path | None) -> list[str]:
    """The mistakes of choosing options of groups that an existing run does not have."""
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
    """`config` with each chosen group composed anew, without the default experiment."""
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
    resolvers = BaseContainer._resolvers  # OmegaConf has no public function to restore one
    before = resolvers["oc.env"]
    OmegaConf.register_new_resolver("oc.env", _kept, replace=True)
    try:
        plain = OmegaConf.to_container(config, resolve=True)
    finally:
        resolvers["oc.env"] = before
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def _kept(name: str, *default: Any) -> str:
    """Used in place of OmegaConf's `oc.env`, also by other resolvers: returns what was written."""
    words = ["null" if word is None else str(word) for word in (name, *default)]
    return f"${{oc.env:{','.join(words)}}}"


def _read(path: Path) -> DictConfig:
    """A run's config, in which only secrets are interpolations; any other `${` is literal."""
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
    at = str(located(path))
    glob = re.match(r"(?:([^*?\[]*)/)?[^*?\[/]*[*?\[]", at)
    is_there = exists(at) or (glob and exists(glob[1] or "."))
    return str(Path(at).absolute()) if is_there and path != "???" else path
