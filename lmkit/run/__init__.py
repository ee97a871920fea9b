"""What a run leaves behind: its directory, its files, and where it ran. No torch here."""

from lmkit.run.directory import DIED, Directory
from lmkit.run.run import (
    GROUP,
    NON_FINITE,
    Run,
    check_name,
    mint_id,
    no_checkpoint,
    no_end,
    run_directories,
)

__all__ = [
    "DIED",
    "GROUP",
    "NON_FINITE",
    "Directory",
    "Run",
    "check_name",
    "mint_id",
    "no_checkpoint",
    "no_end",
    "run_directories",
]
