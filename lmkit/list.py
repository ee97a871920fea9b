"""What the command line can name, a line each."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from lmkit.config import config_folders, group_options


def list(commands: Mapping[str, str], config_dir: str | None = None) -> dict[str, dict[str, str]]:
    """Show every config group with its options, and every command, one line each."""
    folders = config_folders(config_dir)
    groups = {
        group: {option: purpose(folders, group, option) for option in options}
        for group, options in group_options(folders).items()
    }
    found = {f"{group}=": options for group, options in groups.items()}
    found["commands"] = dict(commands)
    width = max(len(name) for names in found.values() for name in names)
    for title, names in found.items():
        print(title)
        for name, text in names.items():
            print(f"  {name:<{width}}  {text}")
    return {**groups, "commands": dict(commands)}


def purpose(folders: Sequence[Path], group: str, option: str) -> str:
    """The first comment line of an option's file, other than Hydra's `@package`."""
    file = next(f for folder in folders if (f := folder / group / f"{option}.yaml").is_file())
    lines = (line.strip() for line in file.read_text(encoding="utf-8").splitlines())
    comments = (line.lstrip("# ") for line in lines if line.startswith("#"))
    return next((comment for comment in comments if not comment.startswith("@package")), "")
