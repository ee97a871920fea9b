"""Finds a checkpoint of a run by its name and loads its weights into a model."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from torch import nn

from lmkit.errors import UserError
from lmkit.head import Head
from lmkit.model import LanguageModel
from lmkit.run import Run
from lmkit.run.checkpoints import RAW, evaluated_weights, load_checkpoint, read_manifest
from lmkit.system.regular_file import listed
from lmkit.tokenizer import Tokenizer

log = logging.getLogger(__name__)


def find_checkpoint(run: Run, name: str) -> Path:
    """The checkpoint file of a run; without validation `best` is `last`, with a warning. `:raw`
    after the name, which says that no average is wanted, changes nothing here."""
    name = name.removesuffix(RAW)
    directory = run.path / "checkpoints"
    there = [path.stem for path in listed(directory, "*.ckpt")]
    if not there:
        raise UserError(f"{run.id} has no checkpoint in {directory}: train it first, or longer")
    if name == "best" and "best" not in there and "last" in there:
        if (step := _best_step(directory / "last.ckpt")) is not None:
            raise UserError(
                f"{run.id} has lost its best checkpoint: that of step {step} is no longer in "
                f"{directory}; put it back, or take another (it has {', '.join(there)})"
            )
        log.warning(
            "%s has no best checkpoint, as no validation has chosen one: taking the last", run.id
        )
        name = "last"
    if name not in there:
        raise UserError(f"{run.id} has no checkpoint={name}; it has {', '.join(there)}")
    return directory / f"{name}.ckpt"


def _best_step(path: Path) -> int | None:
    """The step of the best checkpoint, as another checkpoint of the run records it."""
    for state in load_checkpoint(path).get("callbacks", {}).values():
        if isinstance(state, dict) and isinstance(step := state.get("best_step"), int):
            return step
    return None


def load_weights(
    path: Path, model: LanguageModel, head: Head, tokenizer: Tokenizer, *, raw: bool = False
) -> None:
    """Load a checkpoint's weights into `model` and `head`, their average unless `raw`; UserError if
    the tokenizer differs."""
    recorded = read_manifest(path).get("tokenizer", tokenizer.hash())
    if recorded != tokenizer.hash():
        raise UserError(
            f"checkpoint {path} was trained with another vocabulary: its tokenizer has the hash "
            f"{recorded[:12]}, the run's tokenizer.json {tokenizer.hash()[:12]}; "
            "put back the tokenizer.json that the run was trained with"
        )
    module = nn.ModuleDict({"model": model, "head": head})
    saved = evaluated_weights(load_checkpoint(path), raw=raw)
    weights = {key: value for key, value in saved.items() if key.partition(".")[0] in module}
    embedding = weights.get("model.embedding.weight")
    if embedding is not None and len(embedding) != tokenizer.vocabulary_size:
        raise UserError(
            f"checkpoint {path} was trained with another vocabulary: {len(embedding)} tokens, "
            f"found {tokenizer.vocabulary_size} in the run's tokenizer.json; "
            "put back the tokenizer.json that the run was trained with"
        )
    try:
        module.load_state_dict(weights)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()[1:]]
        raise UserError(
            f"checkpoint {path} does not fit the run's config: {' '.join(lines[:3])}"
        ) from None
    if not all(torch.isfinite(parameter).all() for parameter in module.parameters()):
        log.warning("checkpoint %s has weights that are not finite: training had diverged", path)
