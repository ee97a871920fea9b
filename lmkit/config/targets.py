"""The classes that a `_target_` may name: a config must never be able to run code of its choice."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lmkit.errors import UserError
from lmkit.run.renamed import TARGETS
from lmkit.system.allowed import allowed_class, allowed_prefixes, look_up


@dataclass(frozen=True)
class Slot:
    """A group of the config that holds objects: their base class, and the arguments that the code
    passes to them."""

    base: str
    given: tuple[str, ...] = ()


SLOTS = {
    "data": Slot("lmkit.corpus.Corpus"),
    "tokenizer": Slot("lmkit.tokenizer.AnyTokenizer"),
    "model": Slot("lmkit.model.LanguageModel", ("vocabulary_size",)),
    "head": Slot("lmkit.head.Head", ("hidden_size", "vocabulary_size", "embedding", "init_range")),
    "regularizers": Slot("lmkit.regularizers.Regularizer"),
    "optimizer": Slot("torch.optim.Optimizer", ("params",)),
    "scheduler": Slot("torch.optim.lr_scheduler.LRScheduler", ("optimizer", "num_steps")),
    "averaging": Slot("lmkit.optim.Averaging"),
    "trainer": Slot(
        "lightning.pytorch.Trainer",
        (
            "callbacks",
            "default_root_dir",
            "enable_checkpointing",
            "enable_model_summary",
            "enable_progress_bar",
            "logger",
            "plugins",
            "use_distributed_sampler",
        ),
    ),
    "logger": Slot(
        "lightning.pytorch.loggers.Logger",
        ("save_dir", "version", "run_name", "run_id", "experiment_key"),
    ),
    "callbacks": Slot("lightning.pytorch.callbacks.Callback", ("generate", "samples_path")),
}

# Classes whose keys are in a group beside those of its object, and the arguments from the code.
BESIDE = {
    "data": ("lmkit.windows.DataModule", ("source", "tokenizer", "cache", "seed")),
    "optimizer": ("lmkit.optim.Groups", ()),
    "scheduler": ("lmkit.optim.Stepping", ()),
}

# The function or class that a library's class passes its **kwargs on to, beside its base classes.
FORWARDED = {
    "lightning.pytorch.loggers.tensorboard.TensorBoardLogger": (
        "torch.utils.tensorboard.SummaryWriter"
    ),
    "lightning.pytorch.loggers.wandb.WandbLogger": "wandb.init",
}

# The values that lmkit accepts, where the class would accept more.
VALUES = {"trainer.precision": ("auto", "32-true", "bf16-mixed", "16-mixed")}


def resolve_target(
    path: object, bases: tuple[type, ...] = (), *, prefixes: tuple[str, ...] | None = None
) -> type:
    """The class that `path` names, if it is defined in an allowed package and fits `bases`.

    Raises UserError for anything else: functions, modules, and classes that a module merely
    imported from elsewhere. Without `bases`, the class must fit some slot of the config.
    """
    prefixes = prefixes or allowed_prefixes()
    if not isinstance(path, str) or not path:
        raise UserError(f"{path!r} is not the dotted name of a class")
    path = TARGETS.get(path, path)
    found = allowed_class(path, prefixes)
    if bases and not issubclass(found, bases):
        wanted = " or ".join(map(public_name, bases))
        raise UserError(f"{path} is not a {wanted}")
    if not bases and not any(issubclass(found, slot_bases(slot)) for slot in SLOTS):
        raise UserError(f"{path} fits no group of the config")
    return found


def slot_bases(slot: str) -> tuple[type, ...]:
    """The base class of a slot, imported."""
    base = look_up(SLOTS[slot].base)
    assert isinstance(base, type)
    return (base,)


def named_class(slot: str, node: Mapping[str, Any] | None) -> Any:
    """The class that a checked node of a slot names, or the slot's base if it names none."""
    if node and "_target_" in node:
        return resolve_target(node["_target_"], slot_bases(slot))
    return slot_bases(slot)[0]


def beside(group: str) -> tuple[Any, frozenset[str]]:
    """The class whose keys are in a group beside those of its object, and its arguments from the
    code."""
    name, given = BESIDE[group]
    return look_up(name), frozenset(given)


def public_name(found: type) -> str:
    """The shortest dotted path of a class: in a package that exports it, else in its module."""
    parts = found.__module__.split(".")
    places = (".".join(parts[:end]) for end in range(len(parts) - 1, 0, -1))
    for place in places:
        if getattr(sys.modules.get(place), found.__qualname__, None) is found:
            return f"{place}.{found.__qualname__}"
    return f"{found.__module__}.{found.__qualname__}"
