"""Keys of a preset that the model of the command line does not have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lmkit.config.keys import class_keys, options_taking
from lmkit.overrides import key_of
from lmkit.run.renamed import TARGETS


def without_others_keys(config: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """`config` without the keys of `model` that a preset has set for another model than the command
    line has chosen.

    An experiment's keys merge into whatever option is chosen. What is left out is known to another
    of lmkit's models; anything else, and every key of the command line, stays, to be a mistake.
    """
    model = config.get("model")
    named = set(map(key_of, overrides))
    if "model" not in named or not isinstance(model, Mapping):
        return dict(config)
    target = str(model.get("_target_"))
    own = class_keys(TARGETS.get(target, target))
    kept = {
        key: value
        for key, value in model.items()
        if key == "_target_"
        or key in own
        or f"model.{key}" in named
        or not options_taking("model", key)
    }
    return {**config, "model": kept if own else dict(model)}
