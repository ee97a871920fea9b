"""The values that a run can have for keys of Lightning's Trainer; docs/trainer.md has them all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Timer
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy, Strategy

from lmkit.config.mistakes import nearest
from lmkit.config.targets import resolve_target
from lmkit.config.trainer import PROFILERS

LEAST = {
    "accumulate_grad_batches": 1,
    "check_val_every_n_epoch": 1,
    "devices": 1,
    "fast_dev_run": 0,
    "gradient_clip_val": 0,
    "limit_test_batches": 0,
    "limit_train_batches": 0,
    "limit_val_batches": 0,
    "log_every_n_steps": 1,
    "max_epochs": -1,
    "max_steps": -1,
    "min_epochs": 0,
    "min_steps": 0,
    "num_nodes": 1,
    "num_sanity_val_steps": -1,
    "overfit_batches": 0,
    "reload_dataloaders_every_n_epochs": 0,
}

# Keys that are numbers of windows, or shares of an epoch.
SHARES = ("limit_train_batches", "limit_val_batches", "limit_test_batches", "overfit_batches")

# Keys that may only have their default value, and why.
UNUSED = {
    "barebones": (False, "a run always writes its metrics and checkpoints"),
    "enable_autolog_hparams": (True, "a run's config is what its loggers are compared by"),
    "limit_predict_batches": (None, "a run predicts nothing; score and generate read it all"),
    "model_registry": (None, "a run uploads no model"),
}

CHOICES = {
    "gradient_clip_algorithm": ("norm", "value"),
    "profiler": tuple(PROFILERS),
    "strategy": (
        "auto",
        "ddp",
        "ddp_find_unused_parameters_false",
        "ddp_find_unused_parameters_true",
    ),
}


def trainer_mistakes(trainer: Mapping[str, Any]) -> Iterator[str]:
    """Mistakes in a `trainer` group, bound to its signature: values that a run cannot have."""
    for key, (value, why) in UNUSED.items():
        if trainer.get(key, value) != value:
            yield f"trainer.{key}={_shown(trainer[key])}: {why}; leave it out"
    yield from _numbers(trainer)
    yield from _choices(trainer)
    yield from _length(trainer)
    yield from _validations(trainer)


def _numbers(trainer: Mapping[str, Any]) -> Iterator[str]:
    for key, least in LEAST.items():
        value = trainer.get(key)
        if isinstance(value, int | float) and value < least:
            yield f"trainer.{key}={value}: must be at least {least}"
    for key in (*SHARES, "val_check_interval"):
        value = trainer.get(key)
        if isinstance(value, float) and value > 1 and not value.is_integer():
            yield f"trainer.{key}={value}: expected a share up to 1.0, or a number of windows"


def _choices(trainer: Mapping[str, Any]) -> Iterator[str]:
    for key, options in CHOICES.items():
        value = trainer.get(key)
        if isinstance(value, str) and value.lower() not in options:
            yield f"trainer.{key}={value}: {nearest(value, options)}"
    strategy = trainer.get("strategy")
    if isinstance(strategy, Mapping) and "_target_" in strategy:
        kind = resolve_target(strategy["_target_"], (Strategy,))
        if not issubclass(kind, DDPStrategy | SingleDeviceStrategy):
            yield (
                f"trainer.strategy={strategy['_target_']}: a checkpoint holds all weights of one "
                "process; set trainer.strategy=auto or ddp"
            )


def _length(trainer: Mapping[str, Any]) -> Iterator[str]:
    for key in ("max_epochs", "max_steps", "limit_train_batches"):
        if trainer.get(key) == 0:
            without = " (-1: no limit)" if key.startswith("max") else " (null: no limit)"
            yield f"trainer.{key}=0: nothing would be trained{without}"
    for unit in ("epochs", "steps"):
        least, most = trainer.get(f"min_{unit}") or 0, trainer.get(f"max_{unit}")
        if most is not None and 0 < most < least:
            yield (
                f"trainer.min_{unit}={least} but trainer.max_{unit}={most}: lower the one or raise "
                "the other"
            )
    if (duration := trainer.get("max_time")) is not None:
        try:
            enough = Timer(duration).time_remaining() > 0  # type: ignore[operator]
        except (MisconfigurationException, TypeError):
            enough = False
        if not enough:
            yield (
                f"trainer.max_time={duration}: expected a time above 0 as DD:HH:MM:SS, or as "
                "{hours: 1, minutes: 30}"
            )


def _validations(trainer: Mapping[str, Any]) -> Iterator[str]:
    interval = trainer.get("val_check_interval")
    if isinstance(interval, str | Mapping):
        yield (
            f"trainer.val_check_interval={interval}: by the clock, a run that goes on validates "
            "after other updates than one that was not stopped; give a number of windows"
        )
    elif interval is not None and not interval > 0:
        yield (
            f"trainer.val_check_interval={interval}: must be above 0; set "
            "trainer.limit_val_batches=0 to leave validation out"
        )
    elif trainer.get("check_val_every_n_epoch", 1) is None and not isinstance(interval, int):
        yield (
            f"trainer.check_val_every_n_epoch=null but trainer.val_check_interval="
            f"{_shown(interval)}: set it to a number of windows, counted over all epochs"
        )


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return str(value.get("_target_", value))
    return {None: "null", True: "true", False: "false"}.get(value, str(value))
