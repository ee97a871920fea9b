"""The training of a model that is counted: one pass over the train split, then a checkpoint."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lmkit.config.targets import named_class
from lmkit.errors import UserError
from lmkit.overrides import key_of, names
from lmkit.run import Run
from lmkit.run.checkpoints import AtomicCheckpointIO, link, load_checkpoint
from lmkit.store.shard import MANIFEST, damaged
from lmkit.system.files import write_atomically
from lmkit.system.progress import progress
from lmkit.training.task import Task
from lmkit.windows import DataModule

log = logging.getLogger(__name__)

REPORT = "counted.json"  # in the run directory: what was counted
# Keys that say how a model is trained by gradients.
GRADIENTS = ("optimizer", "scheduler", "regularizers", "averaging")
# Keys of the trainer that a counted model has a use for.
USED = ("accelerator", "devices", "precision", "limit_val_batches", "limit_test_batches")


def is_counted(config: Mapping[str, Any]) -> bool:
    """Whether the model of a checked config is counted rather than trained by gradients."""
    return bool(named_class("model", config["model"]).counted)


def check_counted(config: Mapping[str, Any], data: DataModule, overrides: Sequence[str]) -> None:
    """Raise UserError if there is nothing to count; warn of settings that have no effect."""
    store = data.prepared.stores["train"]
    if store.num_tokens == store.num_documents:
        raise UserError(
            f"the {store.num_documents} documents of train have no tokens but those that close "
            "them: the tokenizer makes nothing of this text; take another one"
        )
    if unused := list(_unused(config, overrides)):
        log.warning("the model is counted once, over all of train: no effect of %s", unused)


def _unused(config: Mapping[str, Any], overrides: Sequence[str]) -> Iterator[str]:
    """Settings of the command line, and limits of a preset, that say how gradients are followed."""
    for line in overrides:
        group, _, key = key_of(line).partition(".")
        if group in GRADIENTS or (group == "trainer" and key and key not in USED):
            yield line
    for key in ("limit_train_batches", "overfit_batches"):
        value = config["trainer"].get(key)
        if value and not names(overrides, f"trainer.{key}"):
            yield f"trainer.{key}={value}"


def count(
    run: Run, task: Task, data: DataModule, identity: Mapping[str, Any], newest: Path | None
) -> None:
    """Count the train split into model and head of a task, or load them from the checkpoint
    `newest`, and write a checkpoint of them that is both the best and the last."""
    store = data.prepared.stores["train"]
    task.values.tokens_seen = store.num_tokens
    if newest is not None:
        task.load_state_dict(load_checkpoint(newest)["state_dict"])
        return
    ends = {"document": store.document_ends, "sentence": store.line_ends, "stream": None}
    tokens = np.asarray(store.tokens)
    if (highest := int(tokens.max())) >= store.vocabulary_size:
        what = f"token id {highest} of a vocabulary of {store.vocabulary_size} in its shards"
        raise damaged(store.directory / MANIFEST, what)
    began = time.perf_counter()
    with progress("counting", store.num_tokens) as advance:
        counted = task.model.count(
            tokens,
            ends[data.protocol],
            data.tokenizer.eos_id,
            lambda share: advance(int(share * store.num_tokens)),
        )
    task.head.load_state_dict(counted.head, assign=True)  # without a copy
    task.values.seconds = time.perf_counter() - began
    for row in counted.report:
        if row["fallback"]:
            numbers = ", ".join(f"{discount:g}" for discount in row["discounts"])
            log.warning(
                "order %d: %s; its discounts are set, not estimated: %s",
                *(row["order"], row["fallback"], numbers),
            )
    if task.trainer.fast_dev_run:  # type: ignore[attr-defined]
        return
    write_atomically(run.path / REPORT, json.dumps(counted.report, indent=2).encode())
    path = run.path / "checkpoints" / f"step-{0:09d}.ckpt"
    state = {"state_dict": task.state_dict(), "global_step": 0, "epoch": 0}
    AtomicCheckpointIO(identity).save_checkpoint(state, path)
    for name in ("last.ckpt", "best.ckpt"):
        link(path.with_name(name), path)
