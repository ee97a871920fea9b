"""The cells that run as scans and the two of xLSTM, and each once more as its paper writes it: a
document at a time, position by position, head by head, without stabilisers."""

import math

import pytest
import torch
import torch.nn.functional as F

from lmkit.config.check import check
from lmkit.config.compose import compose
from lmkit.errors import UserError
from lmkit.model import MLSTM, QRNN, SLSTM, MinGRU, MinLSTM


def in_heads(cell, **more):
    """A model whose layers divide into two heads, whatever size is asked for."""
    return lambda vocabulary, **sizes: cell(vocabulary, **{**sizes, "hidden_size": 8, **more})


SCANNED = {
    "qrnn": QRNN,
    "ifo qrnn": lambda vocabulary, **sizes: QRNN(vocabulary, pooling="ifo", window=2, **sizes),
    "min gru": MinGRU,
    "min lstm": lambda vocabulary, **sizes: MinLSTM(vocabulary, state_expansion=2, **sizes),
    "slstm": in_heads(SLSTM),
    "plain slstm": in_heads(SLSTM, head_norm=False, forget_gate_bias=0.0),
    "mlstm": in_heads(MLSTM),
    "plain mlstm": in_heads(MLSTM, head_norm=False, forget_gate_bias=0.0),
}

ROUNDING = {"slstm": 1e-4, "mlstm": 1e-4}  # that a norm over four almost equal units magnifies


def slow_layer(kind, layer, inputs):
    """The outputs of a layer of a kind, one for each of `inputs`, vectors of one document."""
    return SLOW[kind.split()[-1] if "min" not in kind else kind](layer, inputs)


def slow_qrnn(layer, inputs):
    W, b = layer.weight_ih, layer.bias_ih  # noqa: N806
    c = torch.zeros(layer.hidden_size)
    outputs = []
    for t, x in enumerate(inputs):
        seen = x
        if layer.window == 2:
            seen = torch.cat([x, inputs[t - 1] if t else torch.zeros_like(x)])
        z, f, *others = (W @ seen + b).split(layer.hidden_size)
        z, f, others = torch.tanh(z), torch.sigmoid(f), [torch.sigmoid(each) for each in others]
        c = f * c + (others[1] if layer.pooling == "ifo" else 1 - f) * z
        outputs.append(others[0] * c if others else c)
    return outputs


def g(x):
    return torch.stack([each + 0.5 if each >= 0 else torch.sigmoid(each) for each in x])


def slow_min_gru(layer, inputs):
    h = torch.zeros(layer.size)
    outputs = []
    for x in inputs:
        z, candidate = (layer.weight_ih @ x + layer.bias_ih).chunk(2)
        z = torch.sigmoid(z)
        h = (1 - z) * h + z * g(candidate)
        outputs.append(h if layer.weight_ho is None else layer.weight_ho @ h)
    return outputs


def slow_min_lstm(layer, inputs):
    h = torch.zeros(layer.size)
    outputs = []
    for x in inputs:
        f, i, candidate = (layer.weight_ih @ x + layer.bias_ih).chunk(3)
        f, i = torch.sigmoid(f), torch.sigmoid(i)
        h = f / (f + i) * h + i / (f + i) * g(candidate)
        outputs.append(h if layer.weight_ho is None else layer.weight_ho @ h)
    return outputs


def normalised(layer, hidden):
    if layer.norm is None:
        return hidden
    heads = [F.layer_norm(head, head.shape) for head in hidden.chunk(layer.num_heads)]
    return layer.norm.weight * torch.cat(heads)


def slow_slstm(layer, inputs):
    size = layer.hidden_size // layer.num_heads
    blocks = layer.weight_hh.split(size)  # of gate 0 and head 0, gate 0 and head 1, ...
    heads = range(0, len(blocks), layer.num_heads)
    R = [torch.block_diag(*blocks[k : k + layer.num_heads]) for k in heads]  # noqa: N806
    h = c = n = torch.zeros(layer.hidden_size)
    outputs = []
    for x in inputs:
        gates = (layer.weight_ih @ x + layer.bias_ih).chunk(4)
        i, f, z, o = (gate + matrix @ h for gate, matrix in zip(gates, R, strict=True))
        c = torch.sigmoid(f) * c + torch.exp(i) * torch.tanh(z)
        n = torch.sigmoid(f) * n + torch.exp(i)
        h = torch.sigmoid(o) * c / n
        outputs.append(normalised(layer, h))
    return outputs


def slow_mlstm(layer, inputs):
    heads, size = layer.num_heads, layer.hidden_size // layer.num_heads
    C = [torch.zeros(size, size)] * heads  # noqa: N806
    n = [torch.zeros(size)] * heads
    outputs = []
    for x in inputs:
        rows = layer.weight_ih @ x + layer.bias_ih
        *vectors, o, i, f = rows.split([layer.hidden_size] * 4 + [heads] * 2)
        read = []
        for head, (q, k, v) in enumerate(zip(*(each.split(size) for each in vectors), strict=True)):
            k = k / math.sqrt(size)
            keep, add = torch.sigmoid(f[head]), torch.exp(i[head])
            C[head] = keep * C[head] + add * torch.outer(v, k)
            n[head] = keep * n[head] + add * k
            read.append(C[head] @ q / (n[head] @ q).abs().clamp(min=1))
        outputs.append(torch.sigmoid(o) * normalised(layer, torch.cat(read)))
    return outputs


SLOW = {
    "qrnn": slow_qrnn,
    "min gru": slow_min_gru,
    "min lstm": slow_min_lstm,
    "slstm": slow_slstm,
    "mlstm": slow_mlstm,
}


def window(lanes=3, time=40, size=6, seed=2):
    """Inputs (lanes, time, size), and resets nowhere."""
    generator = torch.Generator().manual_seed(seed)
    resets = torch.zeros(lanes, time, dtype=torch.bool)
    return torch.randn(lanes, time, size, generator=generator), resets


def mistake(*argv):
    """What the check says of a config that it refuses."""
    with pytest.raises(UserError) as raised:
        check(compose(list(argv)))
    return str(raised.value)
