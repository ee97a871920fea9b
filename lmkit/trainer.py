"""Lightning's Trainer of a config, without what lmkit does itself, and what it complains of."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from lmkit.allow import slot_bases
from lmkit.binding import build
from lmkit.errors import UserError
from lmkit.redaction import redact
from lmkit.safety import anchored

# What these raise themselves is about how they were set up, or about what they were given.
LIBRARIES = ("lightning.", "torch.optim.")


def build_trainer(node: Mapping[str, Any], **given: Any) -> pl.Trainer:
    """The trainer of a config, without what lmkit does itself."""
    trainer: pl.Trainer = build(
        anchored(dict(node), Path(given.get("default_root_dir", "."))),
        bases=slot_bases("trainer"),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        **given,
    )
    return trainer


@contextmanager
def complaints() -> Iterator[None]:
    """What Lightning or an optimiser refuses while it works is a mistake in its settings."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        place = error.__traceback__
        while place and place.tb_next:
            place = place.tb_next
        module = place.tb_frame.f_globals.get("__name__", "") if place else ""
        if not module.startswith(LIBRARIES):
            raise
        raise UserError(f"{module} refuses the config: {redact(said(error))}") from error


def said(error: Exception) -> str:
    """The message of a library's exception in one line, or its kind where it has none."""
    return " ".join(str(error).split()) or type(error).__name__


@contextmanager
def silent() -> Iterator[None]:
    """Nothing is warned of or told of what is built only to see whether it can be."""
    loggers = [logging.getLogger(f"lightning.{name}") for name in ("pytorch", "fabric")]
    levels = [each.level for each in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for each in loggers:
            each.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            for each, level in zip(loggers, levels, strict=True):
                each.setLevel(level)
