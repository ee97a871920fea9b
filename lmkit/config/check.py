"""Checks the whole composed config, before anything is built and before data is read."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, Literal

import torch

from lmkit import kernels
from lmkit.config.binding import bind, bind_node, unknown
from lmkit.config.build import build, split_node
from lmkit.config.compose import Composition
from lmkit.config.contradictions import contradictions, remarks
from lmkit.config.dry_run import attempt, dry_run
from lmkit.config.keys import NAMED
from lmkit.config.loggers import missing_packages
from lmkit.config.mistakes import nearest, report
from lmkit.config.optimizer import fit_groups
from lmkit.config.presets import without_others_keys
from lmkit.config.recipe import Recipe
from lmkit.config.safety import escapes, leaks
from lmkit.config.signatures import signature_keys
from lmkit.config.targets import BESIDE, SLOTS, VALUES, beside, slot_bases
from lmkit.config.values import Group
from lmkit.errors import UserError
from lmkit.kernels import Kernels
from lmkit.ranges import Count, Seed, Size
from lmkit.system import hardware
from lmkit.system.processes import launched

log = logging.getLogger(__name__)

PRECISIONS = VALUES["trainer.precision"]
# Other names that Lightning has for these precisions.
SHORT_PRECISIONS = {"None": "32-true", "32": "32-true", "16": "16-mixed", "bf16": "bf16-mixed"}


@dataclass
class Root:
    """The root keys of a config; a group is a mapping that is checked against its own class.

    outputs: the directory of all runs and of the prepared text.
    name: of the experiment, the directory of its runs inside outputs.
    run_id: of the run, its directory's name; of one that is there: go on with it; null: a new one.
    seed: of weights, dropout, and the order of documents.
    kernels: on the CPU, compiled or PyTorch's own; auto: compiled where there is a compiler. On
    CUDA, graphs (training's steps as CUDA graphs) or PyTorch's own; auto: graphs.
    restarts: how often a run of several processes begins again after one has died.
    threads: of each process; null: chosen by a short trial, or the machine's shared by several
    processes.
    init: the run whose model, weights and tokenizer the training begins with; null: new weights.
    init_checkpoint: of that run, best, last or another.
    init_vocabulary: kept, that run's; new: of the new data, in which tokens that both have keep
    their rows of embedding and head.
    recipe: the published result that lmkit reproduce holds a run of this config to; null: none.
    """

    outputs: str
    name: str
    run_id: str | None
    seed: Seed
    kernels: Kernels
    data: Group
    tokenizer: Group
    model: Group
    head: Group
    optimizer: Group
    trainer: Group
    regularizers: Group | None = None
    scheduler: Group | None = None
    averaging: Group | None = None
    logger: Group | None = None
    callbacks: Group | None = None
    restarts: Count = 3
    threads: Size | None = None
    init: str | None = None
    init_checkpoint: str = "best"
    init_vocabulary: Literal["kept", "new"] = "kept"
    recipe: Recipe | None = None


def check(
    composition: Composition, command: Callable[..., Any] | None = None, *, trains: bool = True
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The config, with values fitted to their types and `auto` decided, and the command's own keys.

    Raises one UserError with all mistakes. With `trains`, contradictions with another group or with
    this machine are mistakes too, and so is what constructors reject that are cheap to call.
    """
    mistakes = list(composition.mistakes)
    config, own = composition.config, composition.own
    positional = _positional(command) if command else set()
    if config:
        names = [*(f.name for f in fields(Root)), *(_keys(command) - positional)]
        mistakes += [
            unknown("", key, names, whole=config, value=config[key])
            for key in config
            if key not in names
        ]
        mistakes += [*leaks(config, trains), *(escapes(config) if trains else ())]
        config = {key: deepcopy(value) for key, value in config.items() if key in names}
        config = without_others_keys(config, composition.overrides)
        _decide(config, mistakes)
        config = _bind_config(config, mistakes)
        if trains:
            mistakes += missing_packages(config["logger"])
            nodes = {name: split_node(name, config.get(name) or {}) for name in BESIDE}
            source, tokenizer = (
                attempt(name, node, partial(build, name), mistakes)
                for name, node in (
                    ("data", nodes["data"][0]),
                    ("tokenizer", config.get("tokenizer")),
                )
            )
            # A remote source would have to ask its service for the splits: not now.
            splits = None if source is None or source.is_remote else source.splits
            lossless = getattr(tokenizer, "lossless", True)
            # A key that is a mistake has its default here: its contradictions would mean nothing.
            noted = [f"{mistake.partition('=')[0]}=" for mistake in mistakes if "=" in mistake]
            mistakes += [
                contradiction
                for contradiction in contradictions(config, splits, lossless)
                if not any(key in contradiction for key in noted)
            ]
            dry_run({**config, "scheduler": nodes["scheduler"][0]}, nodes["scheduler"][1], mistakes)
    if command:
        own = bind("", own, {command: positional}, mistakes)
    if mistakes:
        raise UserError(report(mistakes))
    for remark in remarks(config) if config and trains else ():
        log.warning(remark)
    return config, own


def split_data(node: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The `data` group, split into the node of its source and the keys of DataModule."""
    return split_node("data", node)


def _keys(target: Callable[..., Any] | None) -> set[str]:
    return set(signature_keys(target)) if target else set()


def _positional(command: Callable[..., Any]) -> set[str]:
    """The arguments that the command line passes by itself: the run and the config."""
    parameters = inspect.signature(command).parameters.values()
    return {p.name for p in parameters if p.kind is not p.KEYWORD_ONLY}


def _decide(config: dict[str, Any], mistakes: list[str]) -> None:
    """Replace the `auto` values by what they mean on this machine."""
    trainer = config.get("trainer")
    if not isinstance(trainer, dict):
        return
    name = hardware.accelerator(str(trainer.get("accelerator", "auto")))
    trainer["accelerator"] = name
    precision = str(trainer.setdefault("precision", "auto"))
    trainer["precision"] = SHORT_PRECISIONS.get(precision, precision)
    if precision == "auto":
        trainer["precision"] = hardware.precision(name)
    elif trainer["precision"] not in PRECISIONS:
        del trainer["precision"]
        mistakes.append(f"trainer.precision={precision}: {nearest(precision, PRECISIONS)}")
    if process := launched():  # torchrun or SLURM knows the number of processes
        trainer |= {"devices": process.local_world_size, "num_nodes": process.num_nodes}
    elif trainer.setdefault("devices", "auto") in ("auto", *([-1, "-1"] if name != "cpu" else ())):
        trainer["devices"] = hardware.num_devices(trainer)
    elif not hardware.are_devices(trainer["devices"], name):
        which = ", or a list of GPUs by their numbers, as [0,1]" if name == "cuda" else ""
        mistakes.append(
            f"trainer.devices={trainer.pop('devices')}: expected a number of devices{which}"
        )
    devices = trainer.get("devices")  # not checked yet: it may be a mistake
    sharing = devices if isinstance(devices, int) and devices > 0 else 1
    if config.setdefault("threads", None) is None and (sharing > 1 or launched()):
        config["threads"] = max(torch.get_num_threads() // sharing, 1)  # a share of the machine's
    if config.setdefault("kernels", "auto") == "auto":
        config["kernels"] = kernels.choice(name)


def _bind_config(composed: Mapping[str, Any], mistakes: list[str]) -> dict[str, Any]:
    """The config with every object bound to its signature."""
    config: dict[str, Any] = bind("", composed, {Root: ()}, mistakes)
    for name, slot in SLOTS.items():
        node = config.get(name)
        if name in NAMED:
            named = {key: inner for key, inner in (node or {}).items() if inner is not None}
            config[name] = {
                key: bind_node(
                    *(f"{name}.{key}", inner, slot_bases(name), mistakes, slot.given),
                    whole=composed,
                )
                for key, inner in named.items()
            }
        elif name in ("scheduler", "averaging") and not node:
            config[name] = None
        elif name in config:
            config[name] = bind_node(
                *(name, node, slot_bases(name), mistakes, slot.given),
                *(dict([beside(name)]) if name in BESIDE else None, composed),
            )
    fit_groups(config.get("optimizer") or {}, mistakes)
    return config
