"""Builds all objects of a config that need no data, to report what their constructors refuse, key
by key."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.loggers.logger import DummyLogger
from torch.optim import SGD
from torch.optim.lr_scheduler import ReduceLROnPlateau

from lmkit.config.build import build, split_node
from lmkit.config.optimizer import PATH, Named, make_optimizer, other_names, tiny_parameters
from lmkit.config.safety import anchored
from lmkit.config.signatures import Key, signature_keys
from lmkit.config.targets import SLOTS, beside, resolve_target
from lmkit.config.trainer import LIBRARIES, build_trainer, said, silent
from lmkit.errors import UserError
from lmkit.system.redaction import mask, redact
from lmkit.system.rendezvous import cluster

LOCAL = (CSVLogger, TensorBoardLogger, WandbLogger)  # loggers whose constructors need no service

Node = Mapping[str, Any]
Make = Callable[[dict[str, Any]], Any]


def dry_run(config: Node, stepping: Node, mistakes: list[str]) -> None:
    """Note mistakes in all groups of a config except data and tokenizer.

    Keys with a noted mistake are left out. stepping: the keys of `Stepping` in the scheduler group.
    """
    with TemporaryDirectory() as directory, silent():
        model = _model(config, mistakes)
        for key, node in (config.get("regularizers") or {}).items():
            attempt(f"regularizers.{key}", node, _simply("regularizers"), mistakes)
        attempt("averaging", config.get("averaging"), _simply("averaging"), mistakes)
        named = _parameters(config, mistakes) if model else None
        _schedule(config, stepping, named, mistakes)
        _trainer(config, Path(directory), mistakes)


def attempt(path: str, node: Node | None, make: Make, mistakes: list[str]) -> Any:
    """The object that `make` makes of a node; None if it raises, with a mistake noted for each key
    that is the reason."""
    if not node or "_target_" not in node:
        return None
    keys, given = signature_keys(resolve_target(node["_target_"])), SLOTS[path.split(".")[0]].given
    if any(key.required and name not in (*node, *given) for name, key in keys.items()):
        return None
    noted = [mistake.partition("=")[0] for mistake in mistakes]
    kept = {key: value for key, value in node.items() if f"{path}.{key}" not in noted}
    left_out = [key for key in node if key not in kept]
    while True:
        made, error = _tried(make, kept)
        if error is None:
            return None if left_out else made
        if _named(error, left_out):
            return None  # it needs a key that was left out as a mistake
        reason = _reason(error, make, kept, keys)
        if reason or not left_out:
            mistakes.append(_mistake(path, reason, kept.get(reason or ""), error))
        if reason is None or keys[reason].required:
            return None
        del kept[reason]
        left_out.append(reason)


def _reason(error: Exception, make: Make, node: Node, keys: Mapping[str, Key]) -> str | None:
    """The key because of which a node is refused: a required one that the message names first, else
    one, preferably named there, without which the error changes; None if there is none."""
    known = [name for name in node if name in keys]
    required = [name for name in known if keys[name].required]
    named = _named(error, known)
    if named and named[0] in required:
        return named[0]
    for name in dict.fromkeys((*named, *known)):
        if name not in required and _differs(error, make, node, name):
            return name
    return required[0] if len(required) == 1 else None


def _tried(make: Make, node: dict[str, Any]) -> tuple[Any, Exception | None]:
    try:
        return make(node), None
    except Exception as error:  # a library may raise anything at a value that it refuses
        return None, error


def _named(error: Exception, keys: Iterable[str]) -> list[str]:
    """The keys that a message names, in its order."""
    matches = {key: re.search(rf"\b{key}\b", str(error)) for key in keys}
    starts = {key: match.start() for key, match in matches.items() if match}
    return sorted(starts, key=lambda key: starts[key])


def _differs(error: Exception, make: Make, node: Node, without: str) -> bool:
    rest = {key: value for key, value in node.items() if key != without}
    return str(_tried(make, rest)[1]) != str(error)


def _mistake(path: str, key: str | None, value: Any, error: Exception) -> str:
    if isinstance(error, UserError):  # its message names the key
        return redact(str(error))
    shown = "" if isinstance(value, Mapping | list) or value is None else f"={value}"
    at = mask(f"{path}.{key}{shown}") if key else path
    return f"{at}: {redact(said(error))}"


def _simply(slot: str, **given: Any) -> Make:
    return lambda node: build(slot, node, **given)


def _model(config: Node, mistakes: list[str]) -> torch.nn.Module | None:
    with torch.device("meta"):
        make = _simply("model", vocabulary_size=2)
        model = attempt("model", config.get("model"), make, mistakes)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    needed = 4 * sum(each.numel() for each in model.parameters()) if model else 0
    if needed > memory:
        mistakes.append(
            f"model: its parameters take {needed / 2**30:,.0f} GiB, this machine has "
            f"{memory / 2**30:,.0f}; lower model.hidden_size or model.embedding_size"
        )
    built: torch.nn.Module | None = model
    return built


def _parameters(config: Node, mistakes: list[str]) -> Named | None:
    """Small parameters with the names of a config's; None with mistakes noted if its head cannot be
    built."""

    def make(node: dict[str, Any]) -> Named:
        return tiny_parameters({**config, "head": node})

    named: Named | None = attempt("head", config.get("head"), make, mistakes)
    return named


def _optimizer(config: Node, named: Named | None, mistakes: list[str]) -> Any:
    """The optimiser of small parameters, after a step; None with mistakes noted."""
    named = named or tiny_parameters({"optimizer": {}})
    whole = config.get("optimizer") or {}

    def make(node: dict[str, Any]) -> Any:
        optimizer = make_optimizer(node, named)
        for _, parameter in named:
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step(lambda: 0.0)
        return optimizer

    alone, keys = split_node("optimizer", whole)
    optimizer = attempt("optimizer", alone, make, mistakes)
    if optimizer is None or not keys.get("groups"):
        return optimizer
    groups, before = beside("optimizer")[0](**keys), len(mistakes)
    mistakes += groups.misfits([name for name, _ in named], other_names(config))
    for pattern, settings in groups.by_pattern.items():
        mistakes += [
            f"{PATH}.{pattern}.{key}={value}: {alone['_target_']} has one for all parameters; set "
            f"optimizer.{key}"
            for key, value in settings.items()
            if key not in optimizer.defaults
        ]
        attempt(f"{PATH}.{pattern}", {**alone, **settings}, make, mistakes)
    return optimizer if len(mistakes) > before else attempt("optimizer", whole, make, mistakes)


def _schedule(config: Node, stepping: Node, named: Named | None, mistakes: list[str]) -> None:
    optimizer = _optimizer(config, named, mistakes)

    def make(node: dict[str, Any]) -> Any:
        # Mistakes in a schedule are reported even if its optimiser could not be built.
        steps = optimizer or SGD([torch.nn.Parameter(torch.zeros(2, 2))], lr=0.1)
        scheduler = build("scheduler", node, optimizer=steps, num_steps=1)
        limits = config.get("trainer") or {}
        updates, epochs = limits.get("max_steps") or -1, limits.get("max_epochs") or -1
        beside("scheduler")[0](**stepping).check_length(scheduler, updates=updates, epochs=epochs)
        steps.step(lambda: 0.0)
        scheduler.step(*((0.0,) if isinstance(scheduler, ReduceLROnPlateau) else ()))
        return scheduler

    attempt("scheduler", config.get("scheduler"), make, mistakes)


def _trainer(config: Node, directory: Path, mistakes: list[str]) -> None:
    callbacks = dict(_callbacks(config, directory, mistakes))
    trainer = dict(config.get("trainer") or {})
    trainer |= {"devices": 1, "num_nodes": 1}  # as `cluster(None)`: there are no other processes
    gone = {"cuda": not torch.cuda.is_available(), "mps": not torch.backends.mps.is_available()}
    noted = any(m.startswith(("trainer.accelerator=", "trainer.precision=")) for m in mistakes)
    if noted or gone.get(trainer.get("accelerator", "")):
        trainer |= {"accelerator": "cpu", "precision": "32-true", "strategy": "auto"}

    def make(node: dict[str, Any]) -> Any:
        given = {"plugins": [cluster(None)], "callbacks": list(callbacks.values())}
        return build_trainer(node, default_root_dir=directory, logger=DummyLogger(), **given)

    made = attempt("trainer", trainer, make, mistakes)
    for path, callback in callbacks.items() if made else ():
        of_lightning = type(callback).__module__.startswith(LIBRARIES)
        if of_lightning and (error := _set_up(callback, made)):
            mistakes.append(_mistake(path, None, None, error))


def _set_up(callback: Callback, trainer: Trainer) -> Exception | None:
    """The error that a callback raises only when a training begins, as of a missing package."""
    return _tried(lambda _: callback.setup(trainer, LightningModule(), "fit"), {})[1]


def _callbacks(config: Node, directory: Path, mistakes: list[str]) -> Iterator[tuple[str, Any]]:
    """The callbacks by their paths; loggers that need no service are tried too."""
    given = {"generate": None, "samples_path": directory / "samples.jsonl"}
    refused = [mistake.partition(":")[0] for mistake in mistakes]
    for key, node in (config.get("callbacks") or {}).items():
        if f"callbacks.{key}" in refused:
            continue
        make = _simply("callbacks", **given)
        if made := attempt(f"callbacks.{key}", node and anchored(node, directory), make, mistakes):
            yield f"callbacks.{key}", made
    make = _simply("logger", save_dir=directory, version="0", run_name="0")
    for key, node in (config.get("logger") or {}).items():
        if node and issubclass(resolve_target(node["_target_"]), LOCAL):
            attempt(f"logger.{key}", anchored(node, directory), make, mistakes)
