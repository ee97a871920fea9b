"""Small models learn: with the default initialisers and optimiser, whatever the size and cell."""

import math
from functools import partial
from itertools import islice, product

import pytest
import torch
from torch import nn

from lmkit.assembly import build_model
from lmkit.config.build import build as build_node
from lmkit.config.compose import compose
from lmkit.corpus.pydocs import pydoc_documents
from lmkit.head import FullSoftmax
from lmkit.model import (
    GRU,
    LSTM,
    LSTMP,
    MLSTM,
    QRNN,
    SLSTM,
    Elman,
    LayerNormLSTM,
    MinGRU,
    MinLSTM,
    Mogrifier,
    Window,
    detached,
)
from lmkit.tokenizer import Word

SCANNED = {"qrnn": QRNN, "min gru": MinGRU, "min lstm": MinLSTM, "slstm": SLSTM, "mlstm": MLSTM}
CELLS = ["lstm", "gru", "tanh", "relu", "sigmoid", "window", *SCANNED]
MODELS = {"lstm": LSTM, "gru": GRU, "window": Window, "layer norm": LayerNormLSTM, **SCANNED}
MODELS |= {"lstmp": partial(LSTMP, projection_size=32), "mogrifier": partial(Mogrifier, rank=4)}


def build(cell, vocabulary_size, size, tied, **settings):
    sizes = {"embedding_size": size, "hidden_size": size, "tie_weights": tied, **settings}
    torch.manual_seed(1)
    if cell in ("tanh", "relu", "sigmoid"):
        model = Elman(vocabulary_size, nonlinearity=cell, **sizes)
    else:
        model = MODELS[cell](vocabulary_size, **sizes)
    return model, FullSoftmax(model.hidden_size, vocabulary_size, model.embedding, model.init_range)


def losses(model, head, stream, bptt, num_steps):
    """Nats a token of every update, by conf's own Adam and clipping, again and again over
    stream (lanes, n + 1)."""
    config = compose([]).config
    parameters = list(dict.fromkeys([*model.parameters(), *head.parameters()]))
    optimizer = build_node("optimizer", config["optimizer"], params=parameters)
    windows = (stream.shape[1] - 1) // bptt
    for step in range(num_steps):
        at = step % windows * bptt
        tokens, targets = (stream[:, at + k : at + k + bptt] for k in (0, 1))
        if not at:
            state = model.initial_state(len(stream))
        hidden, _, state = model(tokens, torch.zeros_like(tokens, dtype=torch.bool), state)
        state = detached(state)
        loss = head.loss(hidden, targets, torch.full(targets.shape, 1 / targets.numel())).loss
        optimizer.zero_grad()
        loss.backward()
        for parameter in parameters:
            if parameter.grad is not None and parameter.grad.is_sparse:
                parameter.grad = parameter.grad.to_dense()
        nn.utils.clip_grad_norm_(parameters, config["trainer"]["gradient_clip_val"])
        optimizer.step()
        yield loss.item()


@pytest.mark.parametrize(
    ("cell", "size", "tied"),
    [
        *product(CELLS, [32], [True, False]),
        *product(CELLS, [128], [True]),
        *product(["lstmp", "mogrifier", "layer norm"], [32], [True]),
    ],
)
def test_the_same_windows_again_and_again_are_learnt_by_heart(cell, size, tied):
    """Words drawn evenly and alone: nothing but memory brings the loss below log 30 = 3.4."""
    model, head = build(cell, 30, size, tied)
    stream = torch.randint(30, (2, 2 * 8 + 1))
    num_steps = 100 if size == 128 else 300 if cell in CELLS else 200
    seen = list(losses(model, head, stream, 8, num_steps))
    assert max(seen) < 2 * math.log(30)
    assert sum(seen[-10:]) / 10 < (0.5 if cell == "sigmoid" else 0.15)


def test_six_layers_learn_faster_in_residual_blocks():
    """The same windows as above."""
    ends = {}
    for residual in (None, "rms_norm"):
        model, head = build("lstm", 30, 16, True, num_layers=6, residual=residual)
        seen = list(losses(model, head, torch.randint(30, (2, 2 * 8 + 1)), 8, 100))
        assert max(seen) < 2 * math.log(30)
        ends[residual] = sum(seen[-10:]) / 10
    assert ends[None] > 2
    assert ends["rms_norm"] < 1.5


def test_a_small_tied_model_of_words_is_soon_well_below_the_unigram_entropy():
    """2x96, which with init_range=0.1 stays above it: the vectors are too small to tell apart."""
    text = "".join(islice((text for _, text in pydoc_documents()), 150))
    tokenizer = Word(vocabulary_size=600)
    tokenizer.train([text])
    ids = torch.from_numpy(tokenizer.encode([text]).ids.astype("int64"))
    stream = ids[: 10 * (200 * 20 + 1)].view(10, -1)
    shares = stream.flatten().bincount().double() / stream.numel()
    entropy = torch.special.entr(shares).sum().item()
    ends = {}
    for init_range in (None, 0.1):
        model, head = build("lstm", 600, 96, True, init_range=init_range)
        ends[init_range] = sum(list(losses(model, head, stream, 20, 200))[-20:]) / 20
    assert ends[None] < entropy - 0.15
    assert ends[0.1] > entropy


@pytest.mark.parametrize("size", [16, 256])
def test_scales_follow_the_sizes(size):
    for tied in (True, False):
        model, head = build("lstm", 5000, size, tied)
        looked_up, multiplied = (size**-0.25, size**-0.25) if tied else (1.0, size**-0.5)
        assert model.embedding.weight.std().item() == pytest.approx(looked_up, rel=0.02)
        assert head.weight.std().item() == pytest.approx(multiplied, rel=0.02)
        assert abs(head.weight.mean().item()) < 0.02
        assert not head.bias.any()
        for weight in model.layers.parameters():
            assert weight.abs().max().item() == pytest.approx(size**-0.5, rel=0.1)
            assert weight.std().item() == pytest.approx((3 * size) ** -0.5, rel=0.15)
    model, _ = build("window", 50, size, False)
    bound = (5 * size) ** -0.5
    assert model.projection.weight.abs().max().item() == pytest.approx(bound, rel=0.05)


@pytest.mark.parametrize("size", [200, 650])
@pytest.mark.parametrize("tied", ["", "_tied"])
def test_the_presets_of_pytorch_examples_start_as_that_program_does(size, tied):
    """Encoder and decoder U(-0.1, 0.1), decoder's bias 0, the LSTM as torch.nn.LSTM draws it."""
    config = compose([f"experiment=pytorch_examples_{size}{tied}", "data.path=x"]).config
    model, head = build_model(config, 3000)
    for weight, bound in [
        (model.embedding.weight, 0.1),
        (head.weight, 0.1),
        *((weight, size**-0.5) for weight in model.layers.parameters()),
    ]:
        assert weight.abs().max().item() == pytest.approx(bound, rel=0.02)
        assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)
    assert (head.weight is model.embedding.weight) == bool(tied)
    assert not head.bias.any()


def test_a_sigmoid_network_starts_as_the_tanh_one():
    tanh, sigmoid = (build(cell, 30, 16, False)[0] for cell in ("tanh", "sigmoid"))
    tokens, resets = torch.randint(30, (3, 12)), torch.zeros(3, 12, dtype=torch.bool)
    lowest = tuple((torch.full_like(h, -1.0),) for (h,) in tanh.initial_state(3))
    expected = tanh(tokens, resets, lowest).hidden
    found = sigmoid(tokens, resets, sigmoid.initial_state(3)).hidden
    torch.testing.assert_close(2 * found - 1, expected)
