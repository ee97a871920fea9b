"""A small model of every kind, and each once more in loops: a document at a time, position by
position, by the formulas of the papers."""

from functools import partial
from itertools import cycle

import torch
from scanned_cells import ROUNDING, SCANNED, slow_layer
from slow_cells import SLOW_CELLS, build_cell, grown, slow_block

from lmkit import kernels
from lmkit.model import GRU, LSTM, Elman, Recurrent, RecurrentLayer, Window

VOCABULARY = 13


class MinimalGatedLayer(RecurrentLayer):
    """Zhou et al. 2016, without a kernel."""

    num_gates = 2

    def step(self, inputs, weights, state):
        (h,) = state
        forget = torch.sigmoid(inputs[0] + h @ weights[0].T)
        new = torch.tanh(inputs[1] + (forget * h) @ weights[1].T)
        return ((1 - forget) * h + forget * new,)


class CoupledLayer(RecurrentLayer):
    """An LSTM whose input gate is what its forget gate leaves (Greff et al. 2017), without a
    kernel; its state has two tensors."""

    num_gates = 3
    num_states = 2

    def step(self, inputs, weights, state):
        h, c = state
        forget, new, output = (x + h @ w.T for x, w in zip(inputs, weights, strict=True))
        c = forget.sigmoid() * c + (1 - forget.sigmoid()) * new.tanh()
        return output.sigmoid() * c.tanh(), c


class MinimalGated(Recurrent):
    layer = MinimalGatedLayer


class Coupled(Recurrent):
    layer = CoupledLayer


LOOPED = {"minimal gated": MinimalGated, "coupled": Coupled}


def build(kind, vocabulary_size=VOCABULARY, **kwargs):
    """A model of one of KINDS."""
    torch.manual_seed(3)
    sizes = {"embedding_size": 6, "hidden_size": 7, "init_range": 1.0, **kwargs}
    if kind in BLOCKS:
        norm, cell = kind.split(maxsplit=1)
        return grown(build(cell, vocabulary_size, residual=norm, expansion=1.5, **kwargs))
    if kind == "window":
        return Window(vocabulary_size, context=4, **sizes)
    sizes = {"num_layers": 2, **sizes}
    if kind in ("lstm", "compiled lstm"):
        model = LSTM(vocabulary_size, **sizes)
        if kind == "lstm":
            model.forward = kernels.use("torch")(model.forward)
        return model
    if kind == "gru":
        return GRU(vocabulary_size, **sizes)
    if kind in SLOW_CELLS:
        return build_cell(kind, vocabulary_size, **sizes)
    if kind in LOOPED:
        return LOOPED[kind](vocabulary_size, **sizes)
    if kind in SCANNED:
        return SCANNED[kind](vocabulary_size, **sizes)
    return Elman(vocabulary_size, nonlinearity=kind, **sizes)


CELLS = ["lstm", "compiled lstm", "gru", "tanh", "relu", "sigmoid", *LOOPED, *SLOW_CELLS, *SCANNED]
# A block would magnify the rounding of ROUNDING's cells once more; it is tried with the plain ones.
WITHIN = [kind for kind in CELLS if kind not in ROUNDING]
BLOCKS = [f"{norm} {kind}" for norm, kind in zip(cycle(["rms_norm", "layer_norm"]), WITHIN)]
KINDS = [*CELLS, "window", *BLOCKS]


def slow_cell(kind, layer, x, state):
    """One step of one layer as the formulas have it; x (input_size,)."""
    if kind in SLOW_CELLS:
        return SLOW_CELLS[kind](layer, x, state)
    gates = layer.weight_ih @ x + layer.bias_ih
    h = state[0]
    past = layer.weight_hh @ h + layer.bias_hh
    if kind == "minimal gated":
        W_f, W_n = layer.weight_hh.chunk(2)  # noqa: N806
        x_f, x_n = (gates + layer.bias_hh).chunk(2)
        f = (x_f + W_f @ h).sigmoid()
        return ((1 - f) * h + f * (x_n + W_n @ (f * h)).tanh(),)
    if kind == "coupled":
        f, n, o = (gates + past).chunk(3)
        c = f.sigmoid() * state[1] + (1 - f.sigmoid()) * n.tanh()
        return (o.sigmoid() * c.tanh(), c)
    if "lstm" in kind:
        i, f, g, o = (gates + past).chunk(4)
        c = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
        return (o.sigmoid() * c.tanh(), c)
    if kind == "gru":
        (r, z, n), (pr, pz, pn) = gates.chunk(3), past.chunk(3)
        z = (z + pz).sigmoid()
        n = (n + (r + pr).sigmoid() * pn).tanh()
        return ((1 - z) * n + z * h,)
    return (getattr(torch, kind)(gates + past),)


def slow_hidden(kind, model, document):
    """Hidden vectors (n, hidden) of one document of inputs from the zero state, by loops."""
    if kind == "window":
        embedded = [model.embedding.weight[token] for token in document]
        padding = [torch.zeros_like(embedded[0])] * (model.context - 1)
        padded = padding + embedded
        return torch.stack(
            [
                torch.tanh(model.projection(torch.cat(padded[t : t + model.context])))
                for t in range(len(document))
            ]
        )
    inputs = [model.embedding.weight[token] for token in document]
    for layer in model.layers:
        inputs = slow_outputs(kind, layer, inputs)
    return torch.stack(inputs)


def slow_outputs(kind, layer, inputs):
    """The outputs of one layer for vectors of one document, by loops."""
    if kind in BLOCKS:
        return slow_block(partial(slow_outputs, kind.split(maxsplit=1)[1]), layer, inputs)
    if kind in SCANNED:
        return slow_layer(kind, layer, inputs)
    state = tuple(part[0] for part in layer.initial_state(1))
    outputs = []
    for x in inputs:
        state = slow_cell(kind, layer, x, state)
        outputs.append(state[0])
    return outputs
