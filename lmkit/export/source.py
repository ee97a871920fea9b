"""What `lmkit import` makes a run of again: weights, and a file that says what they are of."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from lmkit.export.directory import new_directory, write_json
from lmkit.inference import TrainedModel

SOURCE = "lmkit.json"


def source(trained: TrainedModel, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Model and head as nodes of a config (of facts), the protocol, and the tokenizer as saved."""
    return {
        "format": 1,
        "model": facts["model"],
        "head": facts["head"],
        "protocol": trained.protocol,
        "tokenizer": trained.tokenizer.saved(),
    }


def write_safetensors(trained: TrainedModel, facts: Mapping[str, Any], path: Path) -> None:
    """Write the directory `path` with the weights, under lmkit's names, and `source`."""
    parts = {"model": trained.model, "head": trained.head}
    weights = {
        f"{part}.{name}": value.detach().cpu().contiguous()
        for part, module in parts.items()
        for name, value in module.state_dict().items()
    }
    if trained.model.tie_weights:  # the format holds no matrix twice
        del weights["head.weight"]
    with new_directory(path) as directory:
        save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
        write_json(directory / SOURCE, source(trained, facts))
