"""The config groups on disk, lmkit's own and the user's; reading them needs no Hydra."""

import re
from collections.abc import Sequence
from pathlib import Path

from lmkit.errors import UserError
from lmkit.system.allowed import PACKAGES, installed
from lmkit.system.source import folders

CONF = next(
    directory
    for directory in (Path(__file__).parents[1] / "conf", Path(__file__).parents[2] / "conf")
    if directory.is_dir()
)

# In an experiment's file: its recipe, and another experiment that it begins with.
RECIPE = re.compile(r"^recipe:", re.MULTILINE)
BASE = re.compile(r"^  - (?!_self_)(\w+)$", re.MULTILINE)

# Where help and lists name the way to a class that is not lmkit's.
OWN = "Classes and commands of your own: LMKIT_ALLOW=PACKAGE lmkit ...; see docs/extending.md."


def config_folders(config_dir: str | None) -> list[Path]:
    """The folders that hold config groups: lmkit's own, the user's `--config-dir`, and those of
    installed packages."""
    if config_dir is not None and not Path(config_dir).is_dir():
        raise UserError(f"--config-dir {config_dir}: no such directory")
    users = [] if config_dir is None else [Path(config_dir).resolve()]
    return [CONF, *users, *installed_folders()]


def installed_folders() -> list[Path]:
    """`conf/` of each installed package that says that configs may name it."""
    places = (place / "conf" for entry in installed(PACKAGES) for place in folders(entry.value))
    return [place for place in places if place.is_dir()]


def group_options(folders: Sequence[Path]) -> dict[str, list[str]]:
    """The config groups, in alphabetical order, and the options of each."""
    groups: dict[str, set[str]] = {}
    for folder in folders:
        for file in folder.glob("*/**/*.yaml"):
            groups.setdefault(file.parent.relative_to(folder).as_posix(), set()).add(file.stem)
    return {group: sorted(groups[group]) for group in sorted(groups)}


def purpose(folders: Sequence[Path], group: str, option: str) -> str:
    """The first comment line of an option's file that is not Hydra's `@package`."""
    file = next(f for folder in folders if (f := folder / group / f"{option}.yaml").is_file())
    lines = (line.strip() for line in file.read_text(encoding="utf-8").splitlines())
    comments = (line.lstrip("# ") for line in lines if line.startswith("#"))
    return next((comment for comment in comments if not comment.startswith("@package")), "")


def recipe_names(folders: Sequence[Path]) -> list[str]:
    """The experiments that have the facts of a published result, or begin with one that has."""
    texts = {
        file.stem: file.read_text(encoding="utf-8")
        for folder in reversed(folders)
        for file in (folder / "experiment").glob("*.yaml")
    }

    def has(name: str) -> bool:
        text = texts.get(name, "")
        return bool(RECIPE.search(text)) or any(map(has, BASE.findall(text)))

    return sorted(filter(has, texts))
