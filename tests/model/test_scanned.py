"""What is particular to the cells that run as scans: zoneout, weight drop, sizes, mistakes."""

import pytest
import torch
from scanned_cells import mistake, slow_qrnn, window

from lmkit import kernels
from lmkit.model import MLSTM, QRNN, SLSTM, Masks, MinGRU, MinLSTM
from lmkit.model.min_gru import MinGRULayer
from lmkit.model.qrnn import QRNNLayer

CELLS = {"qrnn": QRNN, "min_gru": MinGRU, "min_lstm": MinLSTM}


def test_the_layers_of_a_qrnn_look_back_as_in_awd_lstm_lm():
    model = QRNN(10, embedding_size=6, hidden_size=5, num_layers=3)
    assert [layer.window for layer in model.layers] == [2, 1, 1]
    shapes = [tuple(layer.weight_ih.shape) for layer in model.layers]
    assert shapes == [(15, 12), (15, 5), (15, 5)]
    sizes = [[tuple(part.shape) for part in layer] for layer in model.initial_state(4)]
    assert sizes == [[(4, 5), (4, 6)], [(4, 5)], [(4, 5)]]


def test_f_pooling_has_one_gate():
    torch.manual_seed(1)
    layer = QRNNLayer(6, 5, window=2, pooling="f")
    inputs, resets = window(lanes=1, time=9)
    hidden, state = layer(inputs, resets, layer.initial_state(1))
    expected = torch.stack(slow_qrnn(layer, inputs[0].unbind(0)))
    torch.testing.assert_close(hidden[0], expected)
    torch.testing.assert_close(state[0][0], expected[-1])
    assert torch.equal(state[1][0], inputs[0, -1])


@pytest.mark.parametrize("compiled", ["compiled", "torch"])
@pytest.mark.parametrize("make", [QRNNLayer, MinGRULayer])
def test_zoneout_keeps_units_and_in_evaluation_a_share_of_them(make, compiled):
    torch.manual_seed(1)
    layer = make(6, 50)
    inputs, resets = window()
    start = layer.initial_state(3)
    with kernels.use(compiled), torch.no_grad():
        updates = [layer(inputs[:, t : t + 1], resets[:, :1], start)[1][0] for t in range(2)]
        layer.zoneout = (0.25,)
        with Masks(1, 0, 0).use():
            zoned = [layer(inputs[:, :time], resets[:, :time], start)[1][0] for time in (1, 40)]
            again = layer(inputs, resets, start)[1][0]
            layer.number = 1
            next_layer = layer(inputs, resets, start)[1][0]
            layer.number = 0
        with Masks(1, 0, 1).use():
            other = layer(inputs, resets, start)[1][0]
        layer.eval()
        mean = layer(inputs[:, :1], resets[:, :1], start)[1][0]
    kept = zoned[0] == 0  # the state before
    assert 0.1 < kept.double().mean() < 0.4
    torch.testing.assert_close(zoned[0][~kept], updates[0][~kept])
    assert torch.equal(zoned[1], again)
    assert not torch.equal(zoned[1], other)
    assert not torch.equal(zoned[1], next_layer)
    torch.testing.assert_close(mean, 0.75 * updates[0])


def test_weight_dropout_of_a_qrnn_leaves_out_elements_of_its_convolutions():
    torch.manual_seed(1)
    model = QRNN(10, embedding_size=6, hidden_size=5, weight_dropout=0.5)
    layer = model.layers[0]
    with Masks(1, 0, 0).use():
        dropped = layer.dropped("weight_ih")
        inputs, resets = window(lanes=2, time=3)
        found, _ = layer(inputs, resets, layer.initial_state(2))
    assert 0.3 < (dropped == 0).double().mean() < 0.7
    layer.weight_dropout = 0.0
    layer.weight_ih.data.copy_(dropped)
    assert torch.equal(found, layer(inputs, resets, layer.initial_state(2))[0])
    found.sum().backward()
    assert ((layer.weight_ih.grad != 0) == (dropped != 0)).all()


def test_the_update_gate_of_a_minimal_lstm_is_never_zero_by_zero():
    """Both gates shut: each has the half of it."""
    layer = MinLSTM(10, embedding_size=6, hidden_size=5, num_layers=1).layers[0]
    gate = torch.full((2, 5), -300.0, requires_grad=True)
    share = layer.update_gate(gate, gate.detach())
    assert (share == 0.5).all()
    share.sum().backward()
    assert gate.grad.isfinite().all()


@pytest.mark.parametrize("bias", [1.0, 0.0])
def test_forget_gates_of_a_minimal_lstm_begin_as_told(bias):
    model = MinLSTM(10, embedding_size=6, hidden_size=5, state_expansion=2, forget_gate_bias=bias)
    for layer in model.layers:
        assert layer.bias_ih[:10].tolist() == [bias] * 10
        assert layer.bias_ih[10:].abs().max() < 1


STARTS = {
    "qrnn": (QRNN, {}, None),
    "min_gru": (MinGRU, {"state_expansion": 2}, None),
    "min_lstm": (MinLSTM, {"state_expansion": 2}, None),
    "biased min_lstm": (MinLSTM, {"forget_gate_bias": 1.0}, slice(0, 40)),
    "slstm": (SLSTM, {}, slice(40, 80)),
    "mlstm": (MLSTM, {"num_heads": 8}, slice(168, None)),
}


@pytest.mark.parametrize("cell", STARTS)
def test_with_a_number_all_weights_begin_between_minus_this_and_this(cell):
    """But the biases of forget gates that begin as told, and the factors of norms."""
    made, settings, forget = STARTS[cell]
    torch.manual_seed(1)
    sizes = {"embedding_size": 40, "hidden_size": 40, **settings}
    model, plain = made(10, recurrent_init=0.3, **sizes), made(10, **sizes)
    for layer, other in zip(model.layers, plain.layers, strict=True):
        if forget is not None:
            assert torch.equal(layer.bias_ih[forget], other.bias_ih[forget])
            layer.bias_ih.data[forget] = 0.0
        for name, parameter in layer.named_parameters():
            if name != "norm.weight":
                assert 0.28 < parameter.max() <= 0.3, name
                assert -0.3 <= parameter.min() < -0.28, name


@pytest.mark.parametrize("cell", STARTS)
def test_with_xavier_each_block_begins_by_its_own_rows_and_columns(cell):
    made, settings, _ = STARTS[cell]
    torch.manual_seed(1)
    settings = {"embedding_size": 40, "hidden_size": 40, **settings}
    for layer in made(10, recurrent_init="xavier", **settings).layers:
        for block in layer.weight_ih.split(layer.weight_ih.blocks):
            bound = (6 / sum(block.shape)) ** 0.5
            assert block.abs().max().item() == pytest.approx(bound, rel=0.02)


@pytest.mark.parametrize("cell", [MinGRU, MinLSTM])
def test_the_matrix_that_brings_an_expanded_state_down_begins_as_the_others(cell):
    torch.manual_seed(1)
    for init, bound in (("uniform", 80**-0.5), ("xavier", (6 / 120) ** 0.5)):
        model = cell(10, embedding_size=40, hidden_size=40, state_expansion=2, recurrent_init=init)
        for layer in model.layers:
            assert layer.weight_ho.abs().max().item() == pytest.approx(bound, rel=0.05)


@pytest.mark.parametrize("cell", CELLS)
def test_states_are_float32_under_autocast_and_views_of_no_window(cell):
    torch.manual_seed(1)
    model = CELLS[cell](10, embedding_size=6, hidden_size=5)
    tokens = torch.zeros(2, 30, dtype=torch.long)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(tokens, tokens.bool(), model.initial_state(2))
    assert output.hidden.dtype == torch.bfloat16
    for part in (part for layer in output.state for part in layer):
        assert part.dtype == torch.float32
        assert part.untyped_storage().nbytes() == part.nbytes  # else a checkpoint has the window


@pytest.mark.parametrize("cell", [*CELLS, "mlstm"])
def test_what_has_no_recurrent_matrix_says_so(cell):
    said = mistake(f"model={cell}", "model.recurrent_init=orthogonal", "model.weight_dropout=0.5")
    assert (
        "model.recurrent_init=orthogonal: this cell has no recurrent matrix; "
        "set model.recurrent_init=uniform or xavier"
    ) in said
    dropout = (
        "model.weight_dropout=0.5: this cell has no recurrent matrix; set model.weight_dropout=0"
    )
    assert (dropout in said) == (cell != "qrnn")  # whose convolutions are dropped
