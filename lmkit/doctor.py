"""Whether this machine, this installation and this config are fit for a run."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from lmkit import hardware
from lmkit.allow import allowed_prefixes
from lmkit.check import check
from lmkit.config import CONF, Composition
from lmkit.environment import environment
from lmkit.errors import UserError
from lmkit.logs import logged_in


def doctor(composition: Composition) -> dict[str, Any]:
    """Show versions, hardware and settings, and check the composed config as train would."""
    outputs = Path(str(composition.config.get("outputs", "outputs")))
    found = diagnosis(outputs)
    if not found["outputs"]["writable"]:
        composition.mistakes.append(f"outputs={outputs}: cannot be written")
    mistake = None
    try:
        config, _ = check(composition)
        found["config"] = {key: config["trainer"][key] for key in ("accelerator", "precision")}
        found["config"]["processes"] = hardware.num_processes(config["trainer"])
    except UserError as error:
        mistake = error
    _show(found)
    if mistake:
        raise mistake
    return found


def diagnosis(outputs: Path) -> dict[str, dict[str, Any]]:
    """What there is, by topic."""
    here = environment(sys.argv)
    name = hardware.accelerator("auto")
    return {
        "versions": here["versions"],
        "hardware": here["hardware"],
        "threads": here["threads"],
        "auto": {"accelerator": name, "precision": hardware.precision(name)},
        "wandb": {"logged in": logged_in(), "mode": os.environ.get("WANDB_MODE", "offline")},
        "outputs": {"path": str(outputs), "writable": _writable(outputs)},
        "groups": {"path": str(CONF), "classes from": ", ".join(allowed_prefixes())},
    }


def _writable(path: Path) -> bool:
    """Whether `path`, or the nearest folder above that exists, can be written."""
    there = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    try:
        with tempfile.TemporaryFile(dir=there):  # os.access says yes to root, wrongly in /proc
            return True
    except OSError:
        return False


def _show(found: dict[str, dict[str, Any]]) -> None:
    table = Table(box=None, show_header=False)
    for topic, values in found.items():
        for index, (name, value) in enumerate(values.items()):
            table.add_row("" if index else topic, name, str(value))
    Console().print(table)
