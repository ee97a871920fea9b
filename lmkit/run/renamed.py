"""The classes and keys that configs of older versions name, and their names now."""

from collections.abc import Mapping
from typing import Any

KEYS = {"lmkit.tokenizer.Word": {"max_size": "vocabulary_size"}}
TARGETS = {
    "lmkit.stored.Store": "lmkit.store.Store",
    "lmkit.stored.Mixture": "lmkit.store.Mixture",
    "lmkit.datatrove_tokens.Datatrove": "lmkit.store.Datatrove",
    "lmkit.checkpoint.Checkpoint": "lmkit.training.callbacks.Checkpoint",
    "lmkit.guard.StopOnNonFinite": "lmkit.training.callbacks.StopOnNonFinite",
    "lmkit.logs.Samples": "lmkit.training.callbacks.Samples",
    "lmkit.watchdog.Watchdog": "lmkit.training.callbacks.Watchdog",
    "lmkit.logs.WandbLogger": "lmkit.training.loggers.WandbLogger",
}


def renamed(config: Mapping[str, Any]) -> dict[str, Any]:
    """An older run's config with today's names of classes and keys, in the same order."""
    return {key: _node(value) for key, value in retargeted(config).items()}


def retargeted(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config with today's names of classes, at any depth."""
    return {key: _retargeted(key, value) for key, value in config.items()}


def _retargeted(key: str, value: Any) -> Any:
    if isinstance(value, Mapping):
        return retargeted(value)
    if isinstance(value, list):
        return [_retargeted("", each) for each in value]
    return TARGETS.get(str(value), value) if key == "_target_" else value


def _node(node: Any) -> Any:
    names = KEYS.get(str(node.get("_target_")), {}) if isinstance(node, Mapping) else {}
    return {names.get(key, key): value for key, value in node.items()} if names else node
