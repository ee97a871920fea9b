"""A trainer's limits and intervals, converted to windows of the prepared text and checked."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from lmkit.config.build import build, split_node
from lmkit.config.mistakes import report
from lmkit.config.monitors import never_logged
from lmkit.config.optimizer import make_optimizer, tiny_parameters
from lmkit.config.targets import named_class
from lmkit.config.trainer import silent
from lmkit.errors import UserError
from lmkit.optim import Stepping, has_end
from lmkit.windows import DataModule

SPLITS = {"train": "train", "val": "valid", "test": "test"}


def in_windows(trainer: Mapping[str, Any], data: DataModule) -> dict[str, Any]:
    """A trainer's config with its shares of an epoch as numbers of windows.

    The loaders need the numbers to weight a last update that a limit cuts short. Processes have
    different numbers of windows in evaluation, and a share would be another number in each.
    Raises UserError where no window is left, and where a validation would fall within an update
    or never come.
    """
    if trainer.get("fast_dev_run"):
        return dict(trainer)
    mistakes: list[str] = []
    node = {**trainer, **dict(_limits(trainer, data, mistakes))}
    mistakes += _untimely(node, data)
    if mistakes:
        raise UserError(report(mistakes))
    return node


def check_size(data: DataModule) -> None:
    """Raise UserError if there is too little text: no tokens to train on, or fewer than lanes in
    training, or in evaluation fewer in every split than lanes."""
    store = data.prepared.stores.get("train")
    if store is None:  # there is no train split
        return
    if store.num_tokens == store.num_documents:
        raise UserError(
            f"the {store.num_documents} documents of train have no tokens but those that close "
            "them: the tokenizer makes nothing of this text; take another one"
        )
    if data.batch_size > store.num_tokens:
        raise UserError(
            f"data.batch_size={data.batch_size}: train has {store.num_tokens:,} tokens; lower it"
        )
    most = max(store.num_tokens for store in data.prepared.stores.values())
    if data.eval_batch_size > most:
        raise UserError(
            f"data.eval_batch_size={data.eval_batch_size}: no split has more than {most:,} tokens; "
            "lower it"
        )


def check_limits(config: Mapping[str, Any], data: DataModule) -> None:
    """Raise UserError where a checked config does not fit its prepared data."""
    check_size(data)
    valid = data.prepared.stores.get("valid")
    lossless = data.tokenizer.lossless and bool(valid and valid.num_bytes)
    mistakes = list(never_logged(config, lossless))  # of a saved tokenizer, only known now
    head = named_class("head", config["head"])
    if mistakes := [*mistakes, *head.misfits(config, data.tokenizer.vocabulary_size)]:
        raise UserError(report(mistakes))
    check_schedule({**config, "trainer": in_windows(config["trainer"], data)}, data)


def check_schedule(config: Mapping[str, Any], data: DataModule) -> None:
    """Raise UserError if the training of a checked config is longer than its schedule, or too short
    for it.

    config: with the trainer's limits as numbers of windows.
    """
    node, stepping = split_node("scheduler", config["scheduler"] or {})
    trainer = config["trainer"]
    if not node or trainer.get("fast_dev_run"):
        return
    epochs, most = trainer.get("max_epochs", -1), trainer.get("max_steps", -1)
    epochs = math.inf if epochs in (None, -1) else epochs
    updates, each = math.inf if most == -1 else most, _updates(trainer, data)
    epochs, updates = min(epochs, updates / each), min(updates, epochs * each)
    with silent():
        optimizer = make_optimizer(config["optimizer"], tiny_parameters(config))
        num_steps = updates if math.isfinite(updates) else 1
        scheduler = build("scheduler", node, optimizer=optimizer, num_steps=num_steps)
    if misfit := getattr(scheduler, "misfit", lambda: None)():
        raise UserError(misfit)
    if not has_end(scheduler):
        return
    # The schedule makes no step after a last epoch that is cut short.
    Stepping(**stepping).check_length(scheduler, updates=updates, epochs=epochs // 1)


def _limits(
    trainer: Mapping[str, Any], data: DataModule, mistakes: list[str]
) -> Iterator[tuple[str, int]]:
    keys = {f"limit_{stage}_batches": split for stage, split in SPLITS.items()}
    for key, split in {**keys, "overfit_batches": "train"}.items():
        share = trainer.get(key)
        if not isinstance(share, float) or share in (0, 1) or split not in data.prepared.stores:
            continue
        whole = data.num_windows(split)
        if not (number := int(whole * share if share < 1 else share)):
            mistakes.append(
                f"trainer.{key}={share}: of the {whole} windows of {split} that is none; give a "
                "number of windows"
            )
        yield key, number


def _untimely(trainer: Mapping[str, Any], data: DataModule) -> Iterator[str]:
    """Mistakes in when to validate and when to end; only these need the number of windows."""
    interval = trainer.get("val_check_interval")
    every_epoch = isinstance(interval, float) and interval == 1
    if interval is not None and trainer.get("limit_val_batches") != 0 and not every_epoch:
        yield from _within_update(trainer, interval, _epoch(trainer, data))
    least, most = trainer.get("min_epochs") or 0, trainer.get("max_steps", -1)
    if least and 0 < most < (updates := least * _updates(trainer, data)):
        yield (
            f"trainer.min_epochs={least} are {updates} updates but trainer.max_steps={most}: "
            "lower the one or raise the other"
        )
    least, most = trainer.get("min_steps") or 0, trainer.get("max_epochs") or -1
    if least and most > 0 and (updates := most * _updates(trainer, data)) < least:
        yield (
            f"trainer.max_epochs={most} are {updates} updates but trainer.min_steps={least}: "
            "raise the one or lower the other"
        )


def _epoch(trainer: Mapping[str, Any], data: DataModule) -> int:
    """The number of windows that are trained on in an epoch."""
    whole = data.num_windows("train")
    limit = trainer.get("overfit_batches") or trainer.get("limit_train_batches")
    return min(whole, limit) if isinstance(limit, int) else whole


def _updates(trainer: Mapping[str, Any], data: DataModule) -> int:
    """The number of updates in an epoch."""
    return math.ceil(_epoch(trainer, data) / trainer.get("accumulate_grad_batches", 1))


def _within_update(trainer: Mapping[str, Any], interval: int | float, epoch: int) -> Iterator[str]:
    """The mistake of a validation within an update, where no checkpoint could hold its weights."""
    share = isinstance(interval, float) and interval < 1
    windows = max(int(epoch * interval), 1) if share else int(interval)
    together = trainer.get("accumulate_grad_batches", 1)
    across = trainer.get("check_val_every_n_epoch", 1) is None
    if windows > epoch and not across:
        yield (
            f"trainer.val_check_interval={interval} but an epoch has {epoch} windows: set "
            "trainer.check_val_every_n_epoch=null to count them over all epochs, or "
            f"trainer.val_check_interval={epoch}"
        )
        return
    # In an epoch validations come at the multiples of this.
    spacing = math.gcd(windows, epoch) if across else windows
    if spacing < epoch and spacing % together:
        near = max(windows // together, 1) * together
        if near > epoch or (across and epoch % together):
            near = epoch
        yield (
            f"trainer.val_check_interval={interval} but trainer.accumulate_grad_batches="
            f"{together}: after {windows} windows an update is only begun; set "
            f"trainer.val_check_interval={near}"
        )
