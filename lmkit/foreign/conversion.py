"""From another program's parameters to the config and the weights of an lmkit model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lmkit.errors import UserError
from lmkit.foreign.parameters import Layer, Parameters


def settings(found: Parameters) -> list[str]:
    """The model and the head of a config, as command-line arguments."""
    hidden = [layer.weight_hh.shape[1] for layer in found.layers]
    embedding = found.embedding.shape[1]
    tied = found.is_tied  # compares the matrices
    sizes = hidden[:-1] if tied else hidden
    if len(set(sizes)) > 1:
        raise UserError(f"layers of the sizes {hidden}: lmkit's are all of one size")
    lines = [
        f"model={found.kind}",
        f"model.embedding_size={embedding}",
        f"model.hidden_size={sizes[0] if sizes else embedding}",
        f"model.num_layers={len(hidden)}",
        f"model.tie_weights={str(tied).lower()}",
        f"head.bias={str(found.output_bias is not None).lower()}",
    ]
    if found.kind == "elman":
        lines.append(f"model.nonlinearity={found.nonlinearity or 'tanh'}")
    return lines


def weights(found: Parameters) -> dict[str, Tensor]:
    """The state dict of lmkit's model and head, in fp32."""
    parts: dict[str, Tensor | None] = {
        "model.embedding.weight": found.embedding,
        "head.weight": found.output,
        "head.bias": found.output_bias,
    }
    for index, layer in enumerate(found.layers):
        for name, tensor in _layer(layer).items():
            parts[f"model.layers.{index}.{name}"] = tensor
    return {
        name: tensor.to(torch.float32, copy=True).contiguous()
        for name, tensor in parts.items()
        if tensor is not None
    }


def _layer(layer: Layer) -> dict[str, Any]:
    zeros = torch.zeros(len(layer.weight_ih))
    return {
        "weight_ih": layer.weight_ih,
        "weight_hh": layer.weight_hh,
        "bias_ih": zeros if layer.bias_ih is None else layer.bias_ih,
        "bias_hh": zeros if layer.bias_hh is None else layer.bias_hh,
    }
