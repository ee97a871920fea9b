"""The parameters of a model that another program has saved, by their names, and their roles."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from lmkit.errors import UserError
from lmkit.foreign.unpickler import Record

MAX_DEPTH, MAX_MODULES = 50, 10_000  # a hostile file may hold a module within itself
# Under which a checkpoint has its weights, beside optimisers and counters.
WITHIN = ("state_dict", "model_state_dict", "model", "network", "net", "module", "lm")
# nn.LSTM, nn.GRU and nn.RNN name their parameters so, awd-lstm-lm's weight drop adds _raw.
RECURRENT = re.compile(
    r"(?P<prefix>.*?)(?P<name>(weight|bias)_(ih|hh|hr))_l(?P<layer>\d+)(?P<more>_reverse|_raw)?"
)
KINDS = {1: "elman", 3: "gru", 4: "lstm"}  # by the number of gates
# Attributes that make of these layers a model of another kind.
UNLIKE = {
    ("is_forward_lm", False): "it reads backwards, so it does not predict what comes next",
    ("layer_normalization", True): "it normalises what its layers return, which lmkit does not",
}
# The lines of the layout that the user may give, with what other programs call these modules.
EMBEDDING = ("encoder", "embedding", "input_embedding", "embedding_layer", "embed", "emb")
OUTPUT = ("decoder", "output_linear", "linear_layer", "linear", "output", "fc", "out")


@dataclass
class Found:
    """What a file holds. tensors: by the name of the parameter. attributes: those of the modules
    that hold them, by their name followed by the attribute's."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    attributes: dict[str, Any] = field(default_factory=dict)
    num_modules: int = 0


@dataclass
class Layer:
    """A recurrent layer: its parameters under PyTorch's names, without the layer's number."""

    weight_ih: Tensor
    weight_hh: Tensor
    bias_ih: Tensor | None
    bias_hh: Tensor | None


@dataclass
class Parameters:
    """A recurrent language model. kind: elman, gru or lstm. embedding and output: (vocabulary,
    size). nonlinearity: of an Elman network, None where the file does not say it."""

    kind: str
    embedding: Tensor
    layers: list[Layer]
    output: Tensor
    output_bias: Tensor | None
    nonlinearity: str | None

    def beginning_after(self, start: int, eos: int) -> Parameters:
        """The model whose texts begin after the id `eos` as this one's do after `start`: the row of
        <eos>, which other programs never read, becomes that of `start`."""
        if start == eos:
            return self
        embedding = self.embedding.clone()
        embedding[eos] = embedding[start]
        return replace(self, embedding=embedding)

    @property
    def is_tied(self) -> bool:
        """Whether embedding and output are one matrix."""
        return self.embedding.shape == self.output.shape and bool(
            (self.embedding == self.output).all()
        )


def collect(value: Any, depth: int = 0) -> Found:
    """The tensors of what a file holds: a module, a state dict, or a checkpoint around one.

    depth: of checkpoints around it. Raises UserError where it holds neither.
    """
    if isinstance(value, list | tuple):  # awd-lstm-lm: module, criterion, optimiser
        value = next((each for each in value if isinstance(each, Record)), None)
    if isinstance(value, Record) and "state_dict" in value.attributes():  # how Flair pickles
        value = dict(value.attributes())
    if isinstance(value, Record):
        found = Found()
        _collect_module(value, "", found, 0)
        return found
    if isinstance(value, dict):
        if any(isinstance(tensor, Tensor) for tensor in value.values()):
            tensors = {str(k): v for k, v in value.items() if isinstance(v, Tensor)}
            return Found(tensors)
        for name in WITHIN if depth < MAX_DEPTH else ():
            if isinstance(value.get(name), dict | Record):
                found = collect(value[name], depth + 1)
                params = value.get("network_params")  # of REINVENT
                more = params if isinstance(params, dict) else {}
                for key, each in (*value.items(), *more.items()):
                    if isinstance(each, bool | int | str):
                        found.attributes[str(key)] = each
                return found
        raise UserError(f"no state dict: its keys are {', '.join(map(str, list(value)[:12]))}")
    raise UserError("neither a module nor a state dict")


def _collect_module(module: Record, prefix: str, found: Found, depth: int) -> None:
    found.num_modules += 1
    if depth > MAX_DEPTH or found.num_modules > MAX_MODULES:
        raise UserError("modules within each other without end")
    own = module.attributes()
    for name, value in own.items():
        if not name.startswith("_") and not isinstance(value, Tensor | Record):
            found.attributes[f"{prefix}{name}"] = value
        elif isinstance(value, Tensor):  # awd-lstm-lm's dropped weights are no parameters
            found.tensors[f"{prefix}{name}"] = value
    for name, value in _named(own, "_parameters"):
        if isinstance(value, Tensor):
            found.tensors[f"{prefix}{name}"] = value
    for name, value in _named(own, "_modules"):
        if isinstance(value, Record):
            _collect_module(value, f"{prefix}{name}.", found, depth + 1)


def _named(attributes: Mapping[str, Any], which: str) -> list[tuple[Any, Any]]:
    parts = attributes.get(which)
    return list(parts.items()) if isinstance(parts, dict) else []


def identify(found: Found, layout: Mapping[str, str | None]) -> Parameters:
    """The roles of the parameters.

    layout: prefixes of `embedding`, `rnn` and `output`, where the names do not say it.
    Raises UserError, which names all that is missing, left over or of the wrong shape.
    """
    recurrent, others = _recurrent(found.tensors, layout["rnn"])
    if not recurrent:
        raise UserError(
            "no recurrent layers, whose parameters would be called weight_ih_l0 and so on: "
            f"it has {_names(found.tensors)}; name their prefix with rnn="
        )
    layers, mistakes = _layers(recurrent)
    first, last = layers[0].weight_ih.shape[1], layers[-1].weight_hh.shape[1]
    embedding = _role(others, EMBEDDING, first, "embedding", layout["embedding"], mistakes)
    output = _role(others, OUTPUT, last, "output", layout["output"], mistakes)
    bias = _bias(others, embedding, output)
    used = {f"{embedding}weight", f"{output}weight", bias}
    if (left := [name for name in others if name not in used]) and embedding and output:
        mistakes.append(f"left over: {_names(left)}")
    mistakes += [
        why for (name, value), why in UNLIKE.items() if found.attributes.get(name) is value
    ]
    rows = {len(layer.weight_hh) // max(layer.weight_hh.shape[1], 1) for layer in layers}
    if len(rows) != 1 or not rows <= set(KINDS):
        mistakes.append(f"layers of {sorted(rows)} gates: expected 1, 3 or 4 (RNN, GRU, LSTM)")
    if mistakes:
        raise UserError("; ".join(mistakes))
    modes = [value for name, value in found.attributes.items() if name.endswith("mode")]
    return Parameters(
        kind=KINDS[rows.pop()],
        embedding=others[f"{embedding}weight"],
        layers=layers,
        output=others[f"{output}weight"],
        output_bias=others.get(bias),
        nonlinearity={"RNN_RELU": "relu", "RNN_TANH": "tanh"}.get(next(iter(modes), "")),
    )


def _bias(others: Mapping[str, Tensor], embedding: str, output: str) -> str:
    """The name of the output's bias. That of a tied output whose matrix was saved once, as the
    embedding's, is the only other vector with a value for each word."""
    own = f"{output}bias"
    if own in others or embedding != output or f"{embedding}weight" not in others:
        return own
    shape = others[f"{embedding}weight"].shape[:1]
    fit = [n for n, tensor in others.items() if n.endswith("bias") and tensor.shape == shape]
    return fit[0] if len(fit) == 1 else own


def _recurrent(
    tensors: Mapping[str, Tensor], prefix: str | None
) -> tuple[dict[tuple[str, int], dict[str, Tensor]], dict[str, Tensor]]:
    """The parameters of each recurrent layer, in order, and all other parameters."""
    layers: dict[tuple[str, int], dict[str, Tensor]] = {}
    others = {}
    for name, tensor in tensors.items():
        match = RECURRENT.fullmatch(name)
        if match is None or (prefix is not None and not match["prefix"].startswith(prefix)):
            others[name] = tensor
            continue
        layer = layers.setdefault((match["prefix"], int(match["layer"])), {})
        if match["more"] == "_reverse" or match["name"] == "weight_hr":
            layer[match["more"] or match["name"]] = tensor
        elif match["more"] == "_raw" or match["name"] not in layer:
            layer[match["name"]] = tensor  # the raw weight is that before weight drop
    return dict(sorted(layers.items(), key=lambda item: _natural(item[0]))), others


def _natural(place: tuple[str, int]) -> list[Any]:
    prefix, layer = place
    parts = re.split(r"(\d+)", prefix)
    return [[int(part) if part.isdecimal() else part for part in parts], layer]


def _layers(
    recurrent: Mapping[tuple[str, int], Mapping[str, Tensor]],
) -> tuple[list[Layer], list[str]]:
    layers, mistakes = [], []
    size = None
    for (prefix, number), parts in recurrent.items():
        name = f"{prefix}*_l{number}"
        if "_reverse" in parts:
            mistakes.append(f"{name}: it reads backwards too, so it does not predict")
        if "weight_hr" in parts:
            mistakes.append(f"{name}: an LSTM with projection, which lmkit does not have")
        wanted = ("weight_ih", "weight_hh")
        missing = [each for each in wanted if each not in parts]
        if len(biases := {"bias_ih", "bias_hh"} & parts.keys()) == 1:
            (lost,) = {"bias_ih", "bias_hh"} - biases
            mistakes.append(f"{name}: {lost} missing, as it has {biases.pop()}")
        if odd := [each for each in wanted if each in parts and parts[each].dim() != 2]:
            raise UserError(f"{name}: {' and '.join(odd)} must have two dimensions")
        if missing:
            raise UserError("; ".join([*mistakes, f"{name}: {' and '.join(missing)} missing"]))
        layer = Layer(
            *(parts["weight_ih"], parts["weight_hh"], parts.get("bias_ih"), parts.get("bias_hh"))
        )
        if size is not None and layer.weight_ih.shape[1] != size:
            mistakes.append(f"{name}: reads {layer.weight_ih.shape[1]} values, not {size}")
        size = layer.weight_hh.shape[1]
        layers.append(layer)
    if len({layer.bias_ih is None for layer in layers}) > 1:
        mistakes.append("some layers have biases and others none: bias_ih and bias_hh missing")
    return layers, mistakes


def _role(
    others: Mapping[str, Tensor],
    names: Sequence[str],
    width: int,
    role: str,
    given: str | None,
    mistakes: list[str],
) -> str:
    """The prefix of the embedding or of the output, whose matrix has so many columns."""
    if given is not None:
        given = f"{given.removesuffix('.')}." if given else ""
        if f"{given}weight" not in others:
            mistakes.append(f"{role}={given}: there is no {given}weight")
        return given
    fit = [
        name.removesuffix("weight")
        for name, tensor in others.items()
        if name.endswith("weight") and tensor.dim() == 2 and tensor.shape[1] == width
    ]
    known = [prefix for prefix in fit if _called(prefix) in names]
    if len(chosen := known or fit) == 1:
        return chosen[0]
    what = (
        f"{len(chosen)} may be it, {_names(each + 'weight' for each in chosen)}"
        if chosen
        else "none"
    )
    mistakes.append(f"the {role}, a matrix of {width} columns: {what}; name it with {role}=PREFIX")
    return ""


def _called(prefix: str) -> str:
    """The last part of a prefix, as `_embedding` of REINVENT, without underscore."""
    return prefix.rstrip(".").rpartition(".")[2].strip("_")


def _names(names: Any) -> str:
    shown = sorted(map(str, names))
    return ", ".join(shown[:8]) + (f" and {len(shown) - 8} more" if len(shown) > 8 else "")
