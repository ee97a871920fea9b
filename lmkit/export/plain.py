"""A trained model in PyTorch's own modules, which exporters to other formats know."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmkit.errors import UserError
from lmkit.head import FullSoftmax, SampledSoftmax
from lmkit.inference import TrainedModel
from lmkit.model import GRU, LSTM, Elman, LanguageModel, Recurrent, Window

CELLS: dict[type[LanguageModel], str] = {LSTM: "lstm", GRU: "gru", Window: "window"}
KINDS = "the exported file knows"


def cell_of(model: LanguageModel) -> str:
    """lstm, gru, window, or the nonlinearity of an Elman network; raises UserError for any other
    class, also one that is derived from them, and for what the file has no computations of."""
    if isinstance(model, Recurrent) and model.residual:
        raise UserError(f"model.residual={model.residual}: {KINDS} no residual blocks")
    if isinstance(model, Recurrent) and any(any(layer.zoneout) for layer in model.cells):
        raise UserError(f"model.zoneout: {KINDS} no layers with zoneout")
    if isinstance(model, Recurrent) and model.sum_layers:
        raise UserError(f"model.sum_layers=true: {KINDS} only the outputs of the last layer")
    if isinstance(model, LSTM) and model.cap_input_gate:
        raise UserError(f"model.cap_input_gate=true: {KINDS} no capped gates")
    if type(model) is Elman:
        return str(next(iter(model.layers)).nonlinearity)
    if type(model) not in CELLS:
        raise UserError(
            f"model={type(model).__name__}: {KINDS} LSTM, GRU, Elman and Window, no other class"
        )
    return CELLS[type(model)]


def check_head(trained: TrainedModel) -> FullSoftmax:
    """The head; raises UserError for one that is no full softmax in evaluation."""
    head = trained.head
    if type(head) is FullSoftmax or type(head) is SampledSoftmax:
        return head
    raise UserError(
        f"head={type(head).__name__}: {KINDS} FullSoftmax and SampledSoftmax, no other; "
        "format=safetensors writes any, for lmkit"
    )


class Plain(nn.Module):
    """Log-probabilities and the next state from tokens and a state.

    A state is a tensor (batch, size) for each layer, or two of an LSTM (h, c); of a window the last
    tokens (batch, context - 1), -1 where there is none.
    """

    def __init__(self, trained: TrainedModel) -> None:
        super().__init__()
        model, head = trained.model, check_head(trained)
        self.cell = cell_of(model)
        self.embedding = nn.Embedding.from_pretrained(model.embedding.weight.detach())
        self.bias = None if head.bias is None else head.bias.detach()
        self.matrix = head.weight.detach()
        self.layers = nn.ModuleList()
        self.projection = model.projection if isinstance(model, Window) else None
        self.context = model.context if isinstance(model, Window) else 0
        if isinstance(model, Recurrent):
            self.layers.extend(_layer(layer, self.cell) for layer in model.layers)

    def names(self) -> list[str]:
        """The names of the tensors of a state."""
        if self.cell == "window":
            return ["words"]
        kinds = ("h", "c") if self.cell == "lstm" else ("h",)
        return [f"{kind}_{i}" for i in range(len(self.layers)) for kind in kinds]

    def zero(self, batch: int) -> tuple[Tensor, ...]:
        """The state before a text."""
        if self.cell == "window":
            return (torch.full((batch, self.context - 1), -1),)
        each = 2 if self.cell == "lstm" else 1
        sizes = [layer.hidden_size for layer in self.layers if isinstance(layer, nn.RNNBase)]
        return tuple(torch.zeros(batch, size) for size in sizes for _ in range(each))

    def forward(self, tokens: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        """tokens (batch, time) -> log_prob (batch, time, vocabulary), of the next token, and the
        state after the last position."""
        if self.cell == "window":
            hidden, after = self._window(tokens, state[0])
        else:
            hidden, after = self._layers(self.embedding(tokens), state)
        return F.linear(hidden, self.matrix, self.bias).log_softmax(-1), *after

    def _layers(self, hidden: Tensor, state: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        after: list[Tensor] = []
        for index, layer in enumerate(self.layers):
            if self.cell == "lstm":
                h, c = (each[None] for each in state[2 * index : 2 * index + 2])
                hidden, (h, c) = layer(hidden, (h, c))
                after += [h[0], c[0]]
                continue
            h = state[index][None]
            if self.cell == "sigmoid":  # it runs as t = 2 h - 1, see `_layer`
                hidden, h = layer(hidden, 2 * h - 1)
                hidden, h = (1 + hidden) / 2, (1 + h) / 2
            else:
                hidden, h = layer(hidden, h)
            after.append(h[0])
        return hidden, after

    def _window(self, tokens: Tensor, past: Tensor) -> tuple[Tensor, list[Tensor]]:
        assert self.projection is not None
        words = torch.cat([past, tokens], dim=1)
        there = (words >= 0)[..., None]
        vectors = self.embedding(words.clamp(min=0)) * there.to(self.matrix.dtype)
        time = tokens.shape[1]
        slots = [vectors[:, begin : begin + time] for begin in range(self.context)]
        hidden = torch.tanh(self.projection(torch.cat(slots, dim=-1)))
        return hidden, [words[:, time:]]


def _layer(layer: nn.Module, cell: str) -> nn.RNNBase:
    """PyTorch's module with the parameters of a layer of lmkit.

    sigmoid(x) = (1 + tanh(x / 2)) / 2: a sigmoid layer is a tanh layer of t = 2 h - 1.
    """
    weights = {name: value.detach() for name, value in layer.named_parameters()}
    rows, size = weights["weight_hh"].shape
    inputs = weights["weight_ih"].shape[1]
    made: nn.RNNBase
    if cell in ("lstm", "gru"):
        made = (nn.LSTM if cell == "lstm" else nn.GRU)(inputs, size, batch_first=True)
    else:
        kind = "relu" if cell == "relu" else "tanh"
        made = nn.RNN(inputs, size, nonlinearity=kind, batch_first=True)
    if cell == "sigmoid":
        sums = weights["weight_hh"].sum(1) / 4
        weights = {
            "weight_ih": weights["weight_ih"] / 2,
            "weight_hh": weights["weight_hh"] / 4,
            "bias_ih": (weights["bias_ih"] + weights["bias_hh"]) / 2 + sums,
            "bias_hh": torch.zeros(rows),
        }
    made.load_state_dict({f"{name}_l0": value for name, value in weights.items()})
    return made
