"""The recipes that there are: the experiments that hold the facts of a published result."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lmkit.config.compose import compose
from lmkit.config.groups import config_folders, recipe_names
from lmkit.config.mistakes import nearest
from lmkit.errors import UserError

Config = dict[str, Any]


def names(config_dir: str | None = None) -> list[str]:
    """The recipes' names, in alphabetical order; known without composing anything."""
    return recipe_names(config_folders(config_dir))


def config_of(name: str, config_dir: str | None = None) -> Config:
    """The composed config of a recipe, by whose file its runs are named; raises UserError if there
    is no such recipe."""
    known = names(config_dir)
    if name not in known:
        raise UserError(f"lmkit reproduce {name}: no such recipe; {nearest(name, known)}")
    flags = [f"--config-dir={config_dir}"] if config_dir else []
    return {**compose([*flags, f"experiment={name}"]).config, "name": name}


def recipes(config_dir: str | None = None) -> Mapping[str, Config]:
    """The composed configs of all recipes by name."""
    return {name: config_of(name, config_dir) for name in names(config_dir)}
