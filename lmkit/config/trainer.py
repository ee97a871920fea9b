"""Lightning's Trainer of a config, without what lmkit does itself, and what it complains of."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.profilers import Profiler

from lmkit.config.build import build
from lmkit.config.safety import anchored
from lmkit.config.signatures import signature_keys
from lmkit.config.targets import resolve_target
from lmkit.errors import UserError, as_user_error
from lmkit.system.redaction import redact
from lmkit.system.switches import restored

# What these raise themselves is about how they were set up, or about what they were given.
LIBRARIES = ("lightning.", "torch.optim.")

PROFILERS = {
    "simple": "SimpleProfiler",
    "advanced": "AdvancedProfiler",
    "pytorch": "PyTorchProfiler",
}


def build_trainer(node: Mapping[str, Any], **given: Any) -> pl.Trainer:
    """The trainer of a config, without what lmkit does itself."""
    directory = Path(given.get("default_root_dir", "."))
    node = dict(node)
    if profiler := node.get("profiler"):
        node["profiler"] = _profiler(profiler, directory)
    trainer: pl.Trainer = build(
        "trainer",
        anchored(node, directory),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        **given,
    )
    return trainer


def _profiler(profiler: str | Mapping[str, Any], directory: Path) -> dict[str, Any]:
    """The node of a profiler, which writes its report into a file unless told where."""
    if isinstance(profiler, str):
        profiler = {"_target_": f"lightning.pytorch.profilers.{PROFILERS[profiler.lower()]}"}
    there = {"dirpath": str(directory), "filename": "profile"}
    keys = signature_keys(resolve_target(profiler["_target_"], (Profiler,)))
    return {**{key: there[key] for key in there if key in keys}, **profiler}


@contextmanager
def complaints() -> Iterator[None]:
    """What Lightning or an optimiser refuses while it works is a mistake in its settings."""
    try:
        yield
    except Exception as error:
        if as_user_error(error):
            raise
        place = error.__traceback__
        while place and place.tb_next:
            place = place.tb_next
        module = place.tb_frame.f_globals.get("__name__", "") if place else ""
        if not module.startswith(LIBRARIES):
            raise
        raise UserError(f"{module} refuses the config: {redact(said(error))}") from error


def said(error: Exception) -> str:
    """The message of a library's exception in one line, with its kind where that says more."""
    message = " ".join(str(error).split())
    is_sentence = isinstance(error, ValueError | TypeError | RuntimeError | OSError | ImportError)
    if message and (is_sentence or isinstance(error, MisconfigurationException)):
        return message
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


@contextmanager
def silent() -> Iterator[None]:
    """Nothing is warned of or told of what is built only to see whether it can be."""
    loggers = [logging.getLogger(f"lightning.{name}") for name in ("pytorch", "fabric")]
    with restored():
        warnings.simplefilter("ignore")
        for each in loggers:
            each.setLevel(logging.CRITICAL)
        yield
