"""Checks the packages that the loggers of a config need, and sets the group of a sweep's runs."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from typing import Any

from lmkit.config.signatures import signature_keys
from lmkit.config.targets import resolve_target, slot_bases
from lmkit.errors import install
from lmkit.run import GROUP

# By Lightning's module: the packages of which it needs one, and the command that installs it.
PACKAGES = {
    "comet": (("comet_ml",), "pip install comet-ml"),
    "litlogger": (("litlogger",), "pip install litlogger"),
    "mlflow": (("mlflow",), "pip install mlflow-skinny"),
    "neptune": (("neptune",), "pip install neptune"),
    "tensorboard": (("tensorboard", "tensorboardX"), install("tensorboard")),
    "wandb": (("wandb",), "pip install wandb"),
}


def missing_packages(nodes: Mapping[str, Any]) -> Iterator[str]:
    """The packages that the loggers of a checked config need and that are not installed."""
    for key, node in nodes.items():
        if "_target_" not in node:  # a mistake that has been noted
            continue
        for base in resolve_target(node["_target_"], slot_bases("logger")).__mro__:
            module = base.__module__.removeprefix("lightning.pytorch.loggers.")
            packages, command = PACKAGES.get(module, ((), ""))
            if packages and not any(map(find_spec, packages)):
                yield (
                    f"logger.{key}: {node['_target_']} needs the package {packages[0]}: {command}"
                )


def grouped(config: dict[str, Any]) -> dict[str, Any]:
    """The config of a sweep's run, where loggers that have a key `group`, if it is not set, get the
    sweep's id."""
    if not (group := os.environ.get(GROUP)):
        return config
    nodes = {}
    for key, node in config["logger"].items():
        has_group = "group" in signature_keys(resolve_target(node["_target_"]))
        unset = has_group and node.get("group") is None
        nodes[key] = {**node, "group": group} if unset else node
    return {**config, "logger": nodes}
