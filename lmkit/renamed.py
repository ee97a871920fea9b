"""Keys that configs of older versions have, and what they are called now."""

from collections.abc import Mapping
from typing import Any

RENAMED = {"lmkit.tokenizer.Word": {"max_size": "vocabulary_size"}}


def renamed(config: Mapping[str, Any]) -> dict[str, Any]:
    """An older run's config with its keys as they are called now, in their order."""
    return {key: _node(value) for key, value in config.items()}


def _node(node: Any) -> Any:
    names = RENAMED.get(str(node.get("_target_")), {}) if isinstance(node, Mapping) else {}
    return {names.get(key, key): value for key, value in node.items()} if names else node
