"""What a config can name, each option with the first comment of its file."""

from collections.abc import Sequence
from pathlib import Path

from lmkit.config import config_folders, group_options


def list(config_dir: str | None = None) -> dict[str, dict[str, str]]:
    """Show every config group with its options, one line each."""
    folders = config_folders(config_dir)
    groups = {
        group: {option: purpose(folders, group, option) for option in options}
        for group, options in group_options(folders).items()
    }
    width = max(len(option) for options in groups.values() for option in options)
    for group, options in groups.items():
        print(f"{group}=")
        for option, text in options.items():
            print(f"  {option:<{width}}  {text}")
    return groups


def purpose(folders: Sequence[Path], group: str, option: str) -> str:
    """The first comment line of an option's file, other than Hydra's `@package`."""
    file = next(f for folder in folders if (f := folder / group / f"{option}.yaml").is_file())
    lines = (line.strip() for line in file.read_text(encoding="utf-8").splitlines())
    comments = (line.lstrip("# ") for line in lines if line.startswith("#"))
    return next((comment for comment in comments if not comment.startswith("@package")), "")
