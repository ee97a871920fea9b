"""Builds Lightning's Trainer for a config, and turns its errors into mistakes of the config."""

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

# An exception raised in these modules is about their settings or arguments.
LIBRARIES = ("lightning.", "torch.optim.")

PROFILERS = {
    "simple": "SimpleProfiler",
    "advanced": "AdvancedProfiler",
    "pytorch": "PyTorchProfiler",
}


def build_trainer(node: Mapping[str, Any], **given: Any) -> pl.Trainer:
    """The trainer of a config, with Lightning's features turned off that lmkit has itself."""
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
    """The node of a profiler, which writes its report into `directory` by default."""
    if isinstance(profiler, str):
        profiler = {"_target_": f"lightning.pytorch.profilers.{PROFILERS[profiler.lower()]}"}
    defaults = {"dirpath": str(directory), "filename": "profile"}
    keys = signature_keys(resolve_target(profiler["_target_"], (Profiler,)))
    return {**{key: defaults[key] for key in defaults if key in keys}, **profiler}


@contextmanager
def complaints() -> Iterator[None]:
    """Turn an error that Lightning or an optimiser raises inside the block into a UserError."""
    try:
        yield
    except Exception as error:
        if as_user_error(error):
            raise
        last = error.__traceback__
        while last and last.tb_next:
            last = last.tb_next
        module = last.tb_frame.f_globals.get("__name__", "") if last else ""
        if not module.startswith(LIBRARIES):
            raise
        raise UserError(f"{module} refuses the config: {redact(said(error))}") from error


def said(error: Exception) -> str:
    """The message of a library's exception in one line, with its class if that adds something."""
    message = " ".join(str(error).split())
    is_sentence = isinstance(error, ValueError | TypeError | RuntimeError | OSError | ImportError)
    if message and (is_sentence or isinstance(error, MisconfigurationException)):
        return message
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


@contextmanager
def silent() -> Iterator[None]:
    """Suppress the warnings and messages of objects that are built only to check a config."""
    loggers = [logging.getLogger(f"lightning.{name}") for name in ("pytorch", "fabric")]
    with restored():
        warnings.simplefilter("ignore")
        for each in loggers:
            each.setLevel(logging.CRITICAL)
        yield
