"""Runs on disk: their directory, files, history and environment. Importing this needs no torch."""

from lmkit.run.directory import DIED, Directory
from lmkit.run.run import (
    GROUP,
    IMPORTED,
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
    "IMPORTED",
    "NON_FINITE",
    "Directory",
    "Run",
    "check_name",
    "mint_id",
    "no_checkpoint",
    "no_end",
    "run_directories",
]
