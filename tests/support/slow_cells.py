"""Cells without a kernel, and residual blocks, one position of one lane at a time, by the formulas
of their papers."""

import torch

from lmkit.model import LSTMP, LayerNormLSTM, Mogrifier


def build_cell(kind, vocabulary_size, **settings):
    """A model of one of SLOW_CELLS; settings: hidden_size, of the outputs, and others."""
    if kind == "lstmp":
        size = settings.pop("hidden_size")
        return LSTMP(vocabulary_size, hidden_size=size + 2, projection_size=size, **settings)
    if kind == "mogrifier":
        return Mogrifier(vocabulary_size, **settings)
    if kind == "factored mogrifier":
        return Mogrifier(vocabulary_size, rounds=6, rank=3, **settings)
    if kind == "biased mogrifier":
        return grown(Mogrifier(vocabulary_size, rounds=3, rank=3, gate_bias=True, **settings))
    return grown(LayerNormLSTM(vocabulary_size, **settings))


def grown(model):
    """With other gains than 1 and other biases than 0."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if any(word in name for word in ("gain", "bias", "norm")):
                parameter.add_(0.5 * torch.randn_like(parameter))
    return model


def lstm(layer, sums, c):
    """The next c, and o."""
    i, f, g, o = sums.chunk(4)
    i, f, o = i.sigmoid(), f.sigmoid(), o.sigmoid()
    if layer.cap_input_gate:
        i = torch.where(i + f > 1, 1 - f, i)
    return f * c + i * g.tanh(), o


def slow_lstm(layer, x, state):
    h, c = state
    sums = layer.weight_ih @ x + layer.bias_ih + layer.weight_hh @ h + layer.bias_hh
    c, o = lstm(layer, sums, c)
    return o * c.tanh(), c


def slow_lstmp(layer, x, state):
    h, c = state
    sums = layer.weight_ih @ x + layer.bias_ih + layer.weight_hh @ h + layer.bias_hh
    c, o = lstm(layer, sums, c)
    return layer.weight_hr @ (o * c.tanh()), c


def slow_mogrifier(layer, x, state):
    h, c = state
    for number, matrices in enumerate(layer.rounds, start=1):
        matrix = matrices[0] if len(matrices) == 1 else matrices[1] @ matrices[0]
        bias = layer.gate_biases[number - 1] if len(layer.gate_biases) else 0
        if number % 2:
            x = 2 * (matrix @ h + bias).sigmoid() * x
        else:
            h = 2 * (matrix @ x + bias).sigmoid() * h
    sums = layer.weight_ih @ x + layer.bias_ih + layer.weight_hh @ h + layer.bias_hh
    c, o = lstm(layer, sums, c)
    return o * c.tanh(), c


def slow_layer_norm(layer, x, state):
    h, c = state
    of_x, of_h = normalised(layer.weight_ih @ x), normalised(layer.weight_hh @ h)
    sums = layer.gain_ih * of_x + layer.bias_ih + layer.gain_hh * of_h + layer.bias_hh
    c, o = lstm(layer, sums, c)
    return o * (layer.gain_c * normalised(c) + layer.bias_c).tanh(), c


# From a layer, an input (input_size,) and the state before it to the state after it.
SLOW_CELLS = {
    "lstmp": slow_lstmp,
    "mogrifier": slow_mogrifier,
    "factored mogrifier": slow_mogrifier,
    "biased mogrifier": slow_mogrifier,
    "layer norm": slow_layer_norm,
}


def normalised(z):
    return (z - z.mean()) / ((z - z.mean()).square().mean() + 1e-5).sqrt()


def slow_norm(norm, x):
    if isinstance(norm, torch.nn.LayerNorm):
        return normalised(x) * norm.weight + norm.bias
    return x / (x.square().mean() + 1e-5).sqrt() * norm.weight


def slow_block(slow_cell, block, inputs):
    """The outputs of a residual block for vectors of one document, as the formulas have them.
    slow_cell: from a layer and its inputs to its outputs."""
    if block.projection is not None:
        inputs = [block.projection.weight @ x for x in inputs]
    branches = slow_cell(block.cell, [slow_norm(block.norm, x) for x in inputs])
    outputs = []
    for x, branch in zip(inputs, branches, strict=True):
        x = x + branch
        inner = block.up.weight @ slow_norm(block.inner_norm, x) + block.up.bias
        inner = inner * (1 + (inner / 2**0.5).erf()) / 2
        x = x + block.down.weight @ inner + block.down.bias
        outputs.append(x if block.final_norm is None else slow_norm(block.final_norm, x))
    return outputs
