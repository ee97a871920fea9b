"""Finds contradictions between config groups that are each valid by themselves."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

from torch.optim.lr_scheduler import CyclicLR, OneCycleLR

from lmkit import kernels
from lmkit.config.inherited import without_init
from lmkit.config.monitors import monitors
from lmkit.config.refused_callbacks import refused_callbacks
from lmkit.config.signatures import signature_keys
from lmkit.config.targets import named_class
from lmkit.config.trainer_keys import trainer_mistakes
from lmkit.errors import UserError
from lmkit.run import check_name
from lmkit.run.history import flat, inner_keys
from lmkit.system import hardware
from lmkit.system.processes import launched

THREADS = 16  # the most per processor

# The least values of keys that classes of torch and Lightning do not check themselves. The first
# are learning rates of schedules, or factors of one.
LEAST = dict.fromkeys(("gamma", "factor", "eta_min", "min_lr", "base_lr", "max_lr"), 0) | {
    "patience": 0,
    "step_size": 1,
    "total_iters": 0,
    "T_max": 1,
}

# Values logged of a training step, beside the terms of its loss.
LOGGED = ("nll", "sampled_nll", "loss", "perplexity", "tokens_per_second", "grad_norm", "skipped")


def contradictions(
    config: Mapping[str, Any], splits: tuple[str, ...] | None, lossless: bool = True
) -> list[str]:
    """Every contradiction in a config whose groups are valid by themselves.

    splits: those of the source, None if unknown. lossless: whether the tokenizer is, if known.
    """
    groups = ("data", "trainer", "scheduler", "callbacks")
    data, trainer, scheduler, callbacks = (config.get(name) or {} for name in groups)
    return [
        *_names(config),
        *without_init(config),
        *_environment(),
        *_machine(trainer),
        *_kernels(config),
        *_threads(config),
        *trainer_mistakes(trainer),
        *_length(trainer, scheduler),
        *_least("scheduler", scheduler),
        *(mistake for key in callbacks for mistake in _least(f"callbacks.{key}", callbacks[key])),
        *_overfit(data, trainer),
        *_splits(splits),
        *_counted(config),
        *_tokens(config),
        *_lanes(data, trainer),
        *monitors(config, splits, lossless),
        *_rates_of_groups(config),
        *refused_callbacks(callbacks),
        *_terms(config.get("regularizers") or {}),
        *_head(config),
    ]


def remarks(config: Mapping[str, Any]) -> Iterator[str]:
    """Remarks on values of a checked config that are valid but have no effect."""
    model, scheduler = config["model"], config["scheduler"] or {}
    # These schedules set learning rates of their own.
    sets_rates = issubclass(named_class("scheduler", scheduler), (OneCycleLR, CyclicLR))
    if config["optimizer"].get("lr") == 0 and not (sets_rates or config["optimizer"].get("groups")):
        yield "optimizer.lr=0: nothing is learnt"
    key = "projection_size" if "projection_size" in model else "hidden_size"
    size, embedding = model.get(key), model.get("embedding_size")
    if model.get("num_layers") == 1 and model.get("tie_weights") and size != embedding:
        yield (
            f"model.{key}={size} is the size of nothing: with model.tie_weights=true the "
            f"only layer has model.embedding_size={embedding} units"
        )


def _names(config: Mapping[str, Any]) -> Iterator[str]:
    """Names that cannot be those of a run's directory."""
    for key in ("name", "run_id"):
        value = config.get(key)
        try:
            if isinstance(value, str):
                check_name(key, value)
        except UserError as error:
            yield str(error)


def _environment() -> Iterator[str]:
    """Environment variables from which Lightning would set keys of the Trainer, which no config
    would record."""
    for name in sorted(os.environ):
        if match := re.fullmatch(r"PL_TRAINER_(\w+)", name):
            key = f"trainer.{match[1].lower()}"
            yield f"the environment variable {name} would set {key} unseen: unset it, and set {key}"


def _machine(trainer: Mapping[str, Any]) -> Iterator[str]:
    if (nodes := trainer.get("num_nodes", 1)) > 1 and not launched():
        yield (
            f"trainer.num_nodes={nodes}: on several machines torchrun or srun starts the processes "
            "(docs/reliability.md); leave it out here"
        )
    name, precision = trainer.get("accelerator", "cpu"), trainer.get("precision")
    if not hardware.is_available(name):
        yield f"trainer.accelerator={name}: PyTorch sees none here; set trainer=cpu"
        return
    here, wanted = hardware.num_here(name), hardware.num_devices(trainer)
    if here is not None and wanted > here:
        yield f"trainer.devices={wanted}: this machine has {here}; set trainer.devices={here}"
    if precision == "16-mixed" and name == "cpu":
        yield (
            f"trainer.precision=16-mixed but trainer.accelerator={name}: fp16 needs a GPU; set "
            "trainer.precision=bf16-mixed or 32-true"
        )
    if precision == "bf16-mixed" and name == "cuda" and not hardware.fast_bf16(name):
        yield (
            "trainer.precision=bf16-mixed but this GPU or its cuDNN cannot compute recurrent "
            "layers in bf16; set trainer.precision=16-mixed or 32-true"
        )


def _threads(config: Mapping[str, Any]) -> Iterator[str]:
    """More threads than processors are allowed, to reproduce another machine's results, but not
    hundreds."""
    most, threads = THREADS * (os.cpu_count() or 1), config.get("threads") or 1
    if threads > most:
        yield f"threads={threads}: this machine has {os.cpu_count()} processors"


def _kernels(config: Mapping[str, Any]) -> Iterator[str]:
    library, reason = kernels.load() if config.get("kernels") == "compiled" else (True, "")
    if not library:
        yield f"kernels=compiled: {reason}; set kernels=torch"
    accelerator = config["trainer"].get("accelerator")
    if config.get("kernels") == "graphs" and accelerator not in ("cuda", None):
        yield (
            f"kernels=graphs but trainer.accelerator={accelerator}: CUDA graphs need a GPU; "
            "set kernels=auto"
        )


def _length(trainer: Mapping[str, Any], scheduler: Mapping[str, Any]) -> Iterator[str]:
    if trainer.get("fast_dev_run"):
        return
    epochs, steps = trainer.get("max_epochs", -1), trainer.get("max_steps", -1)
    endless = epochs in (-1, None) and steps == -1
    if endless and trainer.get("max_time") is None:
        yield (
            f"trainer.max_epochs={'null' if epochs is None else epochs} and trainer.max_steps=-1: "
            "training would never end; set one of them, or trainer.max_time"
        )
    warmup = scheduler.get("warmup_steps", 0)
    timed = endless and trainer.get("max_time") is not None
    if timed and "num_steps" in signature_keys(named_class("scheduler", scheduler)):
        yield (
            "scheduler decays over the whole run but only trainer.max_time ends it: set "
            "trainer.max_steps or trainer.max_epochs too, or scheduler=constant"
        )
    if 0 < steps <= warmup:
        yield (
            f"scheduler.warmup_steps={warmup} but trainer.max_steps={steps}: the learning rate "
            "would never leave its warm-up; lower the one or raise the other"
        )


def _least(path: str, node: Mapping[str, Any]) -> Iterator[str]:
    """Numbers that a class of torch or Lightning accepts although they make no sense."""
    for key_path, key, value in inner_keys(path, node):
        if key in LEAST and isinstance(value, int | float) and value < LEAST[key]:
            yield f"{key_path}={value}: must be at least {LEAST[key]}"


def _overfit(data: Mapping[str, Any], trainer: Mapping[str, Any]) -> Iterator[str]:
    if trainer.get("overfit_batches") and not named_class("data", data).repeats:
        yield (
            f"trainer.overfit_batches={trainer['overfit_batches']} but data=mixture never reads a "
            "window again; train on one of its stores, data=store"
        )


def _splits(splits: tuple[str, ...] | None) -> Iterator[str]:
    if splits is not None and "train" not in splits:
        yield f"data has no train split (it has {', '.join(splits) or 'none'}): nothing to train on"


def _counted(config: Mapping[str, Any]) -> Iterator[str]:
    """What does not fit a model that is counted rather than trained by gradients."""
    model, head, data = (named_class(name, config.get(name)) for name in ("model", "head", "data"))
    if model.counted != head.counted:
        remedy = "leave head out" if model.counted else "leave head out, or set model=ngram"
        yield (
            f"model={model.__name__} and head={head.__name__} do not belong together: a head of "
            f"tables is for a model that is counted, and it has no other; {remedy}"
        )
    if not model.counted:
        return
    if (processes := hardware.num_processes(config.get("trainer") or {})) > 1:
        yield (
            f"model={model.__name__} is counted by one process, and there are {processes}: set "
            "trainer.devices=1"
        )
    if not data.repeats:
        yield (
            f"model={model.__name__} is counted over one text, and data=mixture never ends: count "
            "one of its stores, data=store"
        )
    if config.get("init"):
        yield f"init={config['init']}: {model.__name__} is counted from nothing; leave init out"


def _tokens(config: Mapping[str, Any]) -> Iterator[str]:
    """Prepared tokens have a tokenizer already, and text needs a tokenizer for text."""
    source, tokenizer = (named_class(name, config.get(name)) for name in ("data", "tokenizer"))
    protocol = (config.get("data") or {}).get("protocol", "document")
    named = config["tokenizer"].get("path") if tokenizer.is_saved else None
    if source.has_tokenizer and (not tokenizer.is_saved or named):
        yield "data=store and data=mixture have tokens of their own tokenizer: leave tokenizer out"
    elif tokenizer.is_saved and not source.has_tokenizer and named is None:
        yield "tokenizer=stored: name the saved tokenizer with tokenizer.path=DIR"
    if protocol in source.refused:
        yield f"data.protocol={protocol}: {source.refused[protocol]}"
    if not source.has_text and not source.has_tokenizer and tokenizer.trainable:
        yield (
            "data=datatrove has tokens, no text to train a tokenizer on: give the one they were "
            "made with, tokenizer=pretrained tokenizer.path=tokenizer.json"
        )


def _lanes(data: Mapping[str, Any], trainer: Mapping[str, Any]) -> Iterator[str]:
    processes = hardware.num_processes(trainer)
    for key in ("batch_size", "eval_batch_size"):
        lanes = data.get(key)
        if lanes is None or lanes < 1 or processes < 1 or lanes % processes == 0:
            continue
        below = lanes // processes * processes
        near = f"{below} or {below + processes}" if below else str(processes)
        divide = [str(n) for n in range(1, lanes + 1) if lanes % n == 0]
        yield (
            f"data.{key}={lanes} but there are {processes} processes: the lanes must divide by "
            f"their number; set data.{key}={near}, or the processes to one of {', '.join(divide)}"
        )


def _rates_of_groups(config: Mapping[str, Any]) -> Iterator[str]:
    """Rates of groups of parameters that a schedule would replace by one of its own."""
    scheduler, groups = config.get("scheduler") or {}, (config.get("optimizer") or {}).get("groups")
    if not issubclass(named_class("scheduler", scheduler), (OneCycleLR, CyclicLR)):
        return
    for key in ("base_lr", "max_lr"):
        if key not in scheduler or isinstance(scheduler[key], list):
            continue
        for path, name, rate in inner_keys("optimizer.groups", flat(groups or {})):
            if name.endswith(".lr"):
                yield (
                    f"{path}={rate} but scheduler.{key}={scheduler[key]} is the rate of all "
                    f"groups: give a list with one for each, or set scheduler=one_cycle"
                )


def _terms(regularizers: Mapping[str, Any]) -> Iterator[str]:
    """Names of regularizers under which another value is logged already."""
    for name in LOGGED:
        if name in regularizers:
            yield f"regularizers.{name}: train/{name} is another value; choose another name"


def _head(config: Mapping[str, Any]) -> Iterator[str]:
    head = named_class("head", config.get("head"))
    yield from head.misfits(config, None)
    yield from _tied(config.get("model") or {}, head)
    if config.get("init") and config.get("init_vocabulary") == "new" and head.token_rows is None:
        yield (
            f"init_vocabulary=new: the weights of {head.__name__} depend on the vocabulary, and "
            "cannot be taken over token by token; leave init_vocabulary out"
        )


def _tied(model: Mapping[str, Any], head: Any) -> Iterator[str]:
    """Hidden vectors of another size than the rows of the tied matrix that multiplies them."""
    kind = named_class("model", model)
    keys = signature_keys(kind)
    if not model.get("tie_weights") or head.projects or "projection_size" in keys:
        return
    if sizes := model.get("hidden_sizes"):
        size, said = sizes[-1], f"hidden_sizes ends with {sizes[-1]}"
    elif kind.keeps_hidden_size:
        size = model.get("hidden_size", keys["hidden_size"].default)
        said = f"hidden_size={size}"
    else:
        return
    if size != (embedding_size := model.get("embedding_size", keys["embedding_size"].default)):
        yield (
            f"model.{said} but model.embedding_size={embedding_size}: tied weights need them "
            "equal; set model.tie_weights=false or make them equal"
        )
