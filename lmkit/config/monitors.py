"""Finds schedules and callbacks that watch a value which a config never gives them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch.optim.lr_scheduler import ReduceLROnPlateau

from lmkit.config.targets import named_class

LOSSES = ("val/nll", "val/perplexity", "val/bits_per_byte", "train/nll", "train/perplexity")


def monitors(
    config: Mapping[str, Any], splits: tuple[str, ...] | None, lossless: bool
) -> Iterator[str]:
    """Every such contradiction; splits, lossless: as in `contradictions`."""
    yield from _unvalidated(config, splits)
    yield from never_logged(config, lossless)
    yield from _modes(config)
    yield from _epoch_ends(config)


def _unvalidated(config: Mapping[str, Any], splits: tuple[str, ...] | None) -> Iterator[str]:
    """What watches a validation, where there is none."""
    groups = ("trainer", "scheduler", "callbacks")
    trainer, scheduler, callbacks = (config.get(name) or {} for name in groups)
    every, epochs = trainer.get("check_val_every_n_epoch"), trainer.get("max_epochs")
    if trainer.get("limit_val_batches") == 0:
        why = "trainer.limit_val_batches=0"
    elif every and epochs and 0 < epochs < every:
        why = f"trainer.check_val_every_n_epoch={every} is beyond trainer.max_epochs={epochs}"
    elif splits is not None and "valid" not in splits:
        why = f"data has no valid split (it has {', '.join(splits)})"
    else:
        return
    if issubclass(named_class("scheduler", scheduler), ReduceLROnPlateau):
        watched = scheduler.get("monitor") or "val/nll"
        yield f"scheduler watches {watched} but {why}; validate, or set scheduler=constant"
    for key, node in callbacks.items():
        monitor = node.get("monitor")
        if getattr(named_class("callbacks", node), "does_without_validation", False):
            continue
        if isinstance(monitor, str) and monitor.startswith("val/"):
            yield (
                f"callbacks.{key}.monitor={monitor} but {why}; validate, or set "
                f"callbacks.{key}=null"
            )


def _watching(config: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The nodes that may have a monitor, by path."""
    callbacks = {f"callbacks.{k}": node for k, node in (config.get("callbacks") or {}).items()}
    return {"scheduler": config.get("scheduler") or {}, **callbacks}


def _modes(config: Mapping[str, Any]) -> Iterator[str]:
    """Monitors that are losses but have mode=max."""
    for path, node in _watching(config).items():
        monitor = node.get("monitor") or "val/nll"
        if node.get("mode") == "max" and monitor in LOSSES:
            yield f"{path}.mode=max but {monitor} is the better the lower; set {path}.mode=min"


def never_logged(config: Mapping[str, Any], lossless: bool) -> Iterator[str]:
    """Monitors of values that no validation logs; nothing if a class of the user may log others."""
    callbacks, trainer = config.get("callbacks") or {}, config.get("trainer") or {}
    modules = [named_class("callbacks", node).__module__ for node in callbacks.values()]
    if trainer.get("fast_dev_run") or not all(
        name.startswith(("lmkit.", "lightning.")) for name in modules
    ):
        return
    logged = ["val/nll", "val/perplexity"]
    has_bytes = named_class("data", config.get("data")).has_bytes
    if lossless and has_bytes and trainer.get("limit_val_batches") in (None, 1.0):
        logged.append("val/bits_per_byte")
    for path, node in _watching(config).items():
        monitor = node.get("monitor")
        if isinstance(monitor, str) and monitor not in logged and node.get("strict", True):
            yield f"{path}.monitor={monitor}: never logged; there are: {', '.join(logged)}"


def _epoch_ends(config: Mapping[str, Any]) -> Iterator[str]:
    """Callbacks that would act on the end of an epoch without a validation, on an earlier one."""
    every = (config.get("trainer") or {}).get("check_val_every_n_epoch", 1)
    for key, node in (config.get("callbacks") or {}).items() if every != 1 else ():
        for name in ("check_on_train_epoch_end", "save_on_train_epoch_end"):
            if node.get(name) and str(node.get("monitor")).startswith("val/"):
                yield (
                    f"callbacks.{key}.{name}=true but trainer.check_val_every_n_epoch="
                    f"{'null' if every is None else every}: not every epoch ends with a "
                    f"validation; leave callbacks.{key}.{name} out"
                )
