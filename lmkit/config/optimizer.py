"""Builds the optimiser of a config, whose groups are chosen by the names of parameters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from lmkit.config.binding import bind
from lmkit.config.build import build, split_node
from lmkit.config.targets import SLOTS, beside, named_class
from lmkit.config.values import kind

PATH = "optimizer.groups"
Named = list[tuple[str, nn.Parameter]]


def fit_groups(node: dict[str, Any], mistakes: list[str]) -> None:
    """Fit the settings of each group in a bound node of an optimiser to its constructor, in place,
    and note what does not fit."""
    groups = node.get("groups")
    if not isinstance(groups, Mapping):
        return
    target = named_class("optimizer", node)
    owner = {target: SLOTS["optimizer"].given}

    def fitted(path: str, settings: Any) -> Any:
        if not isinstance(settings, Mapping) or not settings:
            mistakes.append(
                f"{path}: expected keys of {node['_target_']}, as {{weight_decay: 0}}, found "
                f"{'none' if isinstance(settings, Mapping) else kind(settings)}"
            )
            return {}
        deeper = {k: fitted(f"{path}.{k}", v) for k, v in settings.items() if _is_name(v)}
        own = {str(k): v for k, v in settings.items() if k not in deeper}
        return {**bind(path, own, owner, mistakes, node["_target_"], partial=True), **deeper}

    node["groups"] = {str(key): fitted(f"{PATH}.{key}", value) for key, value in groups.items()}


def _is_name(value: Any) -> bool:
    """Whether a value is that of a part of a parameter's name: names have dots."""
    return isinstance(value, Mapping) and "_target_" not in value


def named_parameters(model: nn.Module, head: nn.Module) -> Named:
    """The parameters of a task in their order, as its checkpoints name them; one that model and
    head share has the model's name alone."""
    named: dict[int, tuple[str, nn.Parameter]] = {}
    for at, module in (("model", model), ("head", head)):
        for name, parameter in module.named_parameters():
            named.setdefault(id(parameter), (f"{at}.{name}", parameter))
    return list(named.values())


def tiny_parameters(config: Mapping[str, Any]) -> Named:
    """Parameters with the names and numbers of dimensions that those of a config's model and head
    have, and of size 2; any two where the optimiser does not ask for names."""
    if not (config["optimizer"].get("groups") or is_by_name(config["optimizer"])):
        sizes = {"model.matrix": (2, 2), "model.bias": (2,)}
        return [(name, nn.Parameter(torch.zeros(size))) for name, size in sizes.items()]
    return [
        (name, nn.Parameter(torch.zeros((2,) * parameter.ndim)))
        for name, parameter in named_parameters(*_without_memory(config))
    ]


def other_names(config: Mapping[str, Any]) -> dict[str, str]:
    """The names under which a config's head has parameters of the model, with the model's."""
    model, head = _without_memory(config)
    names = {id(parameter): name for name, parameter in named_parameters(model, head)}
    every = {f"head.{name}": names[id(each)] for name, each in head.named_parameters()}
    return {name: known for name, known in every.items() if name != known}


def _without_memory(config: Mapping[str, Any]) -> tuple[nn.Module, nn.Module]:
    """A config's model and head on the device `meta`, with a vocabulary of two, or of as many more
    as there are `cutoffs` of the head, whose number says which parameters it has."""
    node, cutoffs = config["head"], config["head"].get("cutoffs")
    vocabulary_size = 2
    if isinstance(cutoffs, list):
        node = {**node, "cutoffs": list(range(1, len(cutoffs) + 1))}
        vocabulary_size += len(cutoffs)
    with torch.device("meta"):
        model = build("model", config["model"], vocabulary_size=vocabulary_size)
        known = {"hidden_size": model.hidden_size, "vocabulary_size": vocabulary_size}
        known |= {"embedding": model.embedding, "init_range": model.init_range}
        return model, build("head", node, **known)


def make_optimizer(node: Mapping[str, Any], named: Iterable[tuple[str, nn.Parameter]]) -> Optimizer:
    """The optimiser of a checked node, of all parameters as one group or of the groups that it
    asks for."""
    own, keys = split_node("optimizer", node)
    groups = beside("optimizer")[0](**keys)
    params = groups.of(named, with_names=is_by_name(node))
    made: Optimizer = build("optimizer", own, params=params)
    return made


def is_by_name(node: Mapping[str, Any]) -> bool:
    """Whether an optimiser takes the names of its parameters with them."""
    return "_target_" in node and getattr(named_class("optimizer", node), "by_name", False)
