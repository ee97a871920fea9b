"""What is particular to the two memories of xLSTM: stabilisers, chunks, heads, mistakes."""

import pytest
import torch
from scanned_cells import mistake, slow_mlstm, slow_slstm, window

from lmkit.config.check import check
from lmkit.config.compose import compose
from lmkit.model import MLSTM, SLSTM, mlstm
from lmkit.model.mlstm import MLSTMLayer
from lmkit.model.slstm import SLSTMLayer
from lmkit.model.state import finite

LAYERS = {"slstm": (SLSTMLayer, slow_slstm), "mlstm": (MLSTMLayer, slow_mlstm)}


def made(cell, size=8, **settings):
    torch.manual_seed(1)
    return LAYERS[cell][0](6, size, num_heads=2, **settings)


@pytest.mark.parametrize("cell", LAYERS)
def test_in_float64_it_is_what_the_paper_has_without_stabilisers(cell):
    layer = made(cell).double()
    inputs, resets = window(lanes=1, time=30)
    hidden, _ = layer(inputs.double(), resets, layer.initial_state(1))
    torch.set_default_dtype(torch.float64)
    try:
        expected = torch.stack(LAYERS[cell][1](layer, inputs[0].double().unbind(0)))
    finally:
        torch.set_default_dtype(torch.float32)
    torch.testing.assert_close(hidden[0], expected, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("cell", LAYERS)
@pytest.mark.parametrize("gate", [-300.0, 300.0])
def test_extreme_input_gates_give_finite_numbers_and_gradients(cell, gate):
    """exp(300) is no float32, nor is exp(-300); the other gates are as they are."""
    layer = made(cell, head_norm=False)
    at = slice(0, 8) if cell == "slstm" else slice(-4, -2)  # of weight_ih: i
    layer.bias_ih.data[at] = gate
    inputs, resets = window(time=20)
    resets[1, 7] = True
    hidden, state = layer(inputs, resets, layer.initial_state(3))
    hidden[~resets].square().sum().backward()
    assert hidden[~resets].isfinite().all()
    for tensor in (*state, *(parameter.grad for parameter in layer.parameters())):
        assert tensor.isfinite().all()
    if cell == "slstm":  # its normaliser has no floor
        assert (hidden[~resets] != 0).all()


@pytest.mark.parametrize("cell", LAYERS)
def test_nothing_is_forgotten_where_forget_gates_are_open(cell):
    """With f = 1 and equal input gates what is remembered of the first word stays."""
    layer = made(cell, head_norm=False, forget_gate_bias=40.0)
    inputs, resets = window(lanes=1, time=300)
    changed = inputs.clone()
    changed[0, 0] += 1
    with torch.no_grad():
        one, other = (layer(x, resets, layer.initial_state(1))[0] for x in (inputs, changed))
    assert (one[0, 299] - other[0, 299]).abs().max() > 1e-5
    layer.bias_ih.data[8 : 16 if cell == "slstm" else None] = -40.0
    if cell == "mlstm":
        layer.bias_ih.data[-2:] = -40.0
    with torch.no_grad():
        one, other = (layer(x, resets, layer.initial_state(1))[0] for x in (inputs, changed))
    torch.testing.assert_close(one[0, 299], other[0, 299], atol=1e-6, rtol=0)


def test_a_long_window_is_read_in_chunks_and_gives_the_same(monkeypatch):
    layer = made("mlstm")
    layer.bias_ih.data[
        -4:-2
    ] = -3.0  # small input gates: m begins at 0, and stays there for a while
    inputs, resets = window(lanes=2, time=150)
    resets[0, [0, 63, 64, 65, 149]] = resets[1, 70] = True
    lengths, read = [], mlstm.remembered

    def counted(q, *others):
        lengths.append(q.shape[2])
        return read(q, *others)

    monkeypatch.setattr(mlstm, "remembered", counted)
    whole, state = layer(inputs, resets, layer.initial_state(2))
    assert lengths == [50, 50, 50]
    assert all((part[0] == 0).all() for part in state)  # its last position is a reset
    single, after = [], layer.initial_state(2)
    for t in range(150):
        hidden, after = layer(inputs[:, t : t + 1], resets[:, t : t + 1], after)
        single.append(hidden)
    torch.testing.assert_close(whole, torch.cat(single, 1), atol=1e-4, rtol=1e-4)
    for part, other in zip(state, after, strict=True):
        torch.testing.assert_close(part, other, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("cell", LAYERS)
def test_states_are_float32_under_autocast_and_views_of_no_window(cell):
    layer = made(cell)
    inputs, resets = window(time=70)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden, state = layer(inputs, resets, layer.initial_state(3))
    assert hidden.dtype == torch.bfloat16
    for part in state:
        assert part.dtype == torch.float32
        assert part.untyped_storage().nbytes() == part.nbytes


@pytest.mark.parametrize("cell", LAYERS)
def test_a_tensor_of_the_state_is_zero_in_lanes_where_it_is_not_finite(cell):
    state = tuple(torch.randn_like(part) for part in made(cell).initial_state(3))
    for part in state:
        spoilt = part.clone()
        spoilt[1].view(-1)[-1] = torch.nan
        ((found, whole),) = finite(((spoilt, part),))
        assert torch.equal(whole, part)
        assert torch.equal(found, torch.stack([part[0], torch.zeros_like(part[1]), part[2]]))


def test_heads_of_an_slstm_do_not_mix_within_a_layer():
    """The recurrent matrix is one for each gate and head; a head's outputs see its own alone."""
    layer = made("slstm", head_norm=False)
    inputs, resets = window(lanes=1, time=2)
    state = layer.initial_state(1)
    h = torch.zeros(1, 8)
    h[0, :4] = 1.0
    with torch.no_grad():
        one = layer(inputs, resets, state)[0]
        other = layer(inputs, resets, (h, *state[1:]))[0]
    assert torch.equal(one[..., 4:], other[..., 4:])
    assert (one[..., :4] != other[..., :4]).all()


def test_weight_dropout_of_an_slstm_leaves_out_recurrent_connections():
    model = SLSTM(10, embedding_size=6, hidden_size=8, weight_dropout=0.5)
    layer = model.layers[0]
    inputs, resets = window(time=5)
    layer(inputs, resets, layer.initial_state(3))[0].square().sum().backward()
    assert 0.3 < (layer.weight_hh.grad == 0).double().mean() < 0.7
    assert (layer.weight_ih.grad != 0).all()


@pytest.mark.parametrize(
    ("model", "told", "expected"),
    [
        (SLSTM, {}, [1.0] * 8),
        (SLSTM, {"forget_gate_bias": -2.0}, [-2.0] * 8),
        (MLSTM, {"num_heads": 4}, [3.0, 4.0, 5.0, 6.0]),
        (MLSTM, {"forget_gate_bias": 1.0}, [1.0] * 2),
        (MLSTM, {"forget_gate_bias": 0.0}, [0.0] * 2),
    ],
)
def test_forget_gates_begin_as_told(model, told, expected):
    for layer in model(10, embedding_size=8, hidden_size=8, **told).layers:
        bias = layer.bias_ih[8:16] if model is SLSTM else layer.bias_ih[-layer.num_heads :]
        assert bias.tolist() == expected


@pytest.mark.parametrize("init", ["uniform", "xavier", "orthogonal"])
def test_recurrent_matrices_of_an_slstm_begin_head_by_head(init):
    block = made("slstm", size=40, init=init).weight_hh.chunk(8)[3]
    if init == "orthogonal":
        torch.testing.assert_close(block @ block.T, torch.eye(20))
    else:
        bound = {"uniform": 20**-0.5, "xavier": (6 / 40) ** 0.5}[init]
        assert block.abs().max().item() == pytest.approx(bound, rel=0.05)


@pytest.mark.parametrize("cell", LAYERS)
def test_mistakes_name_the_sizes_that_do_not_divide(cell):
    settings = ["model.num_heads=3", "model.hidden_size=30"]
    said = mistake(f"model={cell}", *settings)
    assert (
        "model.num_heads=3 does not divide the size of a layer (model.embedding_size: 200): "
        "set model.num_heads to a divisor, or another size"
    ) in said
    check(compose(["name=a", f"model={cell}", *settings, "model.tie_weights=false"]))
    said = mistake(f"model={cell}", "model.num_heads=3", "model.hidden_sizes=[30,200]")
    assert "(model.hidden_sizes: 200)" in said
    said = mistake(f"model={cell}", "model.zoneout=0.1")
    assert (
        "model.zoneout=0.1: memory and normaliser of this cell have a scale that changes with each "
        "position, so a unit cannot keep the value of one; set model.zoneout=0"
    ) in said
