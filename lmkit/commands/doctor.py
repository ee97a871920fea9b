"""`lmkit doctor`: checks whether machine, installation and config are fit for a run."""

from __future__ import annotations

import math
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from lmkit import kernels
from lmkit.assembly import make_data
from lmkit.config.check import check
from lmkit.config.compose import Composition
from lmkit.config.groups import CONF
from lmkit.kernels.matmul import fp32_products
from lmkit.run.environment import environment
from lmkit.system import hardware
from lmkit.system.allowed import allowed_prefixes
from lmkit.training.counted import check_counted, is_counted
from lmkit.training.estimate import Estimate, estimate, lasting
from lmkit.training.limits import check_limits
from lmkit.training.loggers.wandb import logged_in


def doctor(composition: Composition, *, probe: bool = True) -> dict[str, Any]:
    """Show versions and hardware, check the config as train would, and time steps of it.

        lmkit doctor
        lmkit doctor experiment=quick model=gru trainer.precision=32-true

    probe: prepare the text and train for five seconds, to say what an epoch takes.
    """
    outputs = Path(str(composition.config.get("outputs", "outputs")))
    result = diagnosis(outputs, str(composition.config.get("kernels", "auto")))
    if not result["outputs"]["writable"]:
        composition.mistakes.append(f"outputs={outputs}: cannot be written")
    shown = dict(result)
    try:
        config, _ = check(composition)
        result["config"] = shown["config"] = {
            key: config["trainer"][key] for key in ("accelerator", "precision")
        }
        result["config"] |= {
            "kernels": config["kernels"],
            "processes": hardware.num_processes(config["trainer"]),
        }
        if probe:
            data = make_data(config)
            check_limits(config, data)
            if is_counted(config):
                check_counted(config, data, composition.overrides)
                size = {"tokens": data.prepared.stores["train"].num_tokens}
                result["training"] = size
                shown["training"] = {"counted": f"{size['tokens']:,} tokens, once"}
                return result
            measured = estimate(config, data)
            result["training"], shown["training"] = _numbers(measured), _words(measured)
    finally:
        _show(shown)
    return result


def diagnosis(outputs: Path, wanted: str = "auto") -> dict[str, dict[str, Any]]:
    """Versions, hardware and settings by topic; builds the kernels unless `wanted` is torch."""
    here = environment(sys.argv)
    name = hardware.accelerator("auto")
    library, reason = (None, "as the config says") if wanted == "torch" else kernels.load()
    chosen = (
        "graphs" if name == "cuda" and wanted != "torch" else "compiled" if library else "torch"
    )
    return {
        "versions": here["versions"],
        "hardware": here["hardware"],
        "threads": here["threads"],
        "auto": {
            "accelerator": name,
            "precision": hardware.precision(name),
            "kernels": f"torch: {reason}" if chosen == "torch" else chosen,
            "fp32 products": fp32_products(),
        },
        "wandb": {"logged in": logged_in(), "mode": os.environ.get("WANDB_MODE", "offline")},
        "outputs": {"path": str(outputs), "writable": _writable(outputs)},
        "groups": {"path": str(CONF), "classes from": ", ".join(allowed_prefixes())},
    }


def _numbers(measured: Estimate) -> dict[str, Any]:
    """The estimate of a training as numbers; `seconds` is infinite for one without an end."""
    return {
        "num_parameters": measured.num_parameters,
        "threads": measured.threads.number,
        "tokens_per_second": measured.tokens_per_second,
        "epoch_tokens": measured.tokens,
        "epoch_seconds": measured.epoch_seconds,
        "seconds": measured.seconds,
        "peak_memory_bytes": measured.peak_memory_bytes,
    }


def _words(measured: Estimate) -> dict[str, str]:
    """The same estimate as text for people."""
    whole = "without end" if math.isinf(measured.seconds) else f"about {lasting(measured.seconds)}"
    return {
        "parameters": f"{measured.num_parameters:,}",
        "threads": str(measured.threads),
        "tokens per second": f"{measured.tokens_per_second:,.0f}",
        "an epoch": f"{measured.tokens:,} tokens, {lasting(measured.epoch_seconds)}",
        "all of it": f"{whole}, with validations and test",
        "memory": f"{measured.peak_memory_bytes / 2**20:,.0f} MiB at most",
    }


def _writable(path: Path) -> bool:
    """Whether `path`, or the nearest folder above that exists, can be written."""
    existing = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):  # os.access is wrong for root in /proc
            return True
    except OSError:
        return False


def _show(result: dict[str, dict[str, Any]]) -> None:
    table = Table(box=None, show_header=False)
    for topic, values in result.items():
        for index, (name, value) in enumerate(values.items()):
            table.add_row("" if index else topic, name, str(value))
    Console().print(table)
