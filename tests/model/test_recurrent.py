"""The native kernels with resets against cells written as loops, and against lone documents."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scanned_cells import ROUNDING
from slow_cells import SLOW_CELLS
from slow_models import KINDS, VOCABULARY, build, slow_hidden
from torch import nn

from lmkit.model import LSTMP, LayerNormLSTM, Reader


def laid_out(documents, num_lanes):
    """Documents dealt into lanes, a reset position before each: tokens, resets, places."""
    lanes = [[] for _ in range(num_lanes)]
    for index, document in enumerate(documents):
        lane = lanes[index % num_lanes]
        lane.append((0, True, None))
        lane.extend((token, False, (index, t)) for t, token in enumerate(document))
    time = max(map(len, lanes))
    lanes = [lane + [(5, False, None)] * (time - len(lane)) for lane in lanes]
    tokens = torch.tensor([[item[0] for item in lane] for lane in lanes])
    resets = torch.tensor([[item[1] for item in lane] for lane in lanes])
    return tokens, resets, [[item[2] for item in lane] for lane in lanes]


def run_in_windows(model, tokens, resets, bptt):
    reader = Reader(model)
    windows = (slice(begin, begin + bptt) for begin in range(0, tokens.shape[1], bptt))
    return torch.cat([reader.read(tokens[:, w], resets[:, w]).hidden for w in windows], dim=1)


@pytest.mark.parametrize("kind", KINDS)
def test_a_reader_goes_on_in_the_lanes_that_are_left(kind):
    model = build(kind).eval()
    tokens = torch.randint(VOCABULARY, (3, 12), generator=torch.Generator().manual_seed(1))
    resets = torch.zeros_like(tokens, dtype=torch.bool)
    reader = Reader(model)
    with torch.no_grad():
        whole, _, _ = model(tokens, resets, model.initial_state(3))
        for lanes, window in ((3, slice(0, 5)), (2, slice(5, 8)), (1, slice(8, 12))):
            found = reader.read(tokens[:lanes, window], resets[:lanes, window]).hidden
            torch.testing.assert_close(found, whole[:lanes, window])
        reader.state = None
        torch.testing.assert_close(reader.read(tokens, resets).hidden, whole)


document_lists = st.lists(
    st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=8), min_size=1, max_size=6
)


@pytest.mark.parametrize("kind", KINDS)
@given(document_lists, st.integers(1, 3), st.integers(1, 9))
@settings(max_examples=25)
def test_hidden_is_that_of_the_document_alone(kind, documents, num_lanes, bptt):
    model = build(kind)
    if kind.endswith(tuple(SLOW_CELLS)):  # a layer norm magnifies the rounding of float32
        model.double()
    tokens, resets, places = laid_out(documents, num_lanes)
    with torch.no_grad():
        hidden = run_in_windows(model, tokens, resets, bptt)
        alone = [slow_hidden(kind, model, document) for document in documents]
    for lane, row in enumerate(places):
        for t, place in enumerate(row):
            if place is not None:
                expected = alone[place[0]][place[1]]
                torch.testing.assert_close(
                    hidden[lane, t],
                    expected,
                    atol=ROUNDING.get(kind, 2e-6),
                    rtol=1e-5,
                )


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_the_loops(kind):
    model = build(kind)
    documents = [[1, 2, 3, 4], [5, 6], [7, 8, 9, 1, 2], [3]]
    tokens, resets, places = laid_out(documents, 2)
    cotangents = [torch.randn(len(d), model.hidden_size) for d in documents]
    hidden, _, _ = model(tokens, resets, model.initial_state(2))
    sum(
        (hidden[lane, t] * cotangents[place[0]][place[1]]).sum()
        for lane, row in enumerate(places)
        for t, place in enumerate(row)
        if place is not None
    ).backward()
    fast = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    sum(
        (slow_hidden(kind, model, d) * c).sum() for d, c in zip(documents, cotangents, strict=True)
    ).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(fast[name], parameter.grad, atol=2e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nothing_leaks_across_a_reset(kind, dtype):
    """Other tokens before the reset: not one bit after it changes; the gradient is exactly 0."""
    model = build(kind)
    tokens, resets, _ = laid_out([[1, 2, 3, 4, 5], [6, 7, 8]], 1)
    other = tokens.clone()
    other[0, 1:6] = torch.tensor([9, 10, 11, 12, 1])
    with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
        first, _, _ = model(tokens, resets, model.initial_state(1))
        second, _, _ = model(other, resets, model.initial_state(1))
        assert torch.equal(first[:, 7:], second[:, 7:])
        assert not torch.equal(first[:, 1:6], second[:, 1:6])
        model.zero_grad()
        first[:, 7:].float().square().sum().backward()
    rows = model.embedding.weight.grad.abs().sum(1)
    assert (rows[1:6] == 0).all()
    assert (rows[6:8] > 0).all()


@pytest.mark.parametrize(
    "kind", [kind for kind in KINDS if "tanh" not in kind and kind != "window"]
)
def test_the_state_of_a_reset_is_exactly_zero(kind):
    model = build(kind)
    tokens, resets, _ = laid_out([[1, 2, 3], [4, 5, 6]], 1)
    _, _, state = model(tokens[:, :5], resets[:, :5], model.initial_state(1))
    assert all(bool((s == 0).all()) for layer in state for s in layer)


@pytest.mark.parametrize("kind", SLOW_CELLS)
def test_state_and_gradients_are_of_float32_under_autocast(kind):
    """Backward runs after it."""
    model = build(kind)
    tokens, resets, _ = laid_out([[1, 2, 3], [4, 5, 6]], 1)
    gradients = []
    for mixed in (True, False):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=mixed):
            hidden, _, state = model(tokens, resets, model.initial_state(1))
        assert {s.dtype for layer in state for s in layer} == {torch.float32}
        loss = hidden[~resets].float().square().sum()
        gradients.append(torch.autograd.grad(loss, list(model.parameters())))
    for found, expected in zip(*gradients, strict=True):
        assert found.dtype == torch.float32
        assert F.cosine_similarity(found.flatten(), expected.flatten(), dim=0) > 0.99


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_state_is_a_view_of_no_window(kind, dtype):
    """Else a checkpoint would have the window."""
    model = build(kind)
    sizes = []
    for time in (1, 30):
        tokens = torch.ones(2, time, dtype=torch.int64)
        with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
            state = model(tokens, tokens < 0, model.initial_state(2)).state
        sizes.append([part.untyped_storage().nbytes() for layer in state for part in layer])
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize("kind", KINDS)
def test_constants_of_the_reset_are_no_parameters(kind):
    model = build(kind)
    assert set(model.state_dict()) == {name for name, _ in model.named_parameters()}
    if kind in ("lstm", "compiled lstm"):
        layers = 4 * 7 * (6 + 7 + 2) + 4 * 7 * (7 + 7 + 2)
        assert sum(p.numel() for p in model.parameters()) == VOCABULARY * 6 + layers


def test_forget_gate_bias_and_initialisers():
    model = build("lstm", forget_gate_bias=1.0)
    for layer in model.layers:
        assert (layer.bias_ih + layer.bias_hh)[7:14].tolist() == [1.0] * 7
    block = build("lstm", recurrent_init="orthogonal").layers[0].weight_hh.chunk(4)[2]
    torch.testing.assert_close(block @ block.T, torch.eye(7))
    for layer in build("lstm", recurrent_init=0.3).layers:  # biases too (Zaremba et al. 2014)
        for parameter in layer.parameters():
            assert 0.2 < parameter.abs().max() <= 0.3
            assert parameter.min() < 0 < parameter.max()


def test_a_mogrifier_without_rounds_is_an_lstm():
    mogrifier, lstm = build("mogrifier", rounds=0), build("lstm")
    assert mogrifier.state_dict().keys() == lstm.state_dict().keys()
    lstm.load_state_dict(mogrifier.state_dict())
    tokens, resets, _ = laid_out([[1, 2, 3], [4, 5, 6]], 1)
    found, expected = (each(tokens, resets, each.initial_state(1)) for each in (mogrifier, lstm))
    torch.testing.assert_close(found.hidden[~resets], expected.hidden[~resets])


def test_gates_of_a_mogrifier_begin_as_random_as_whole_matrices():
    """The variance 1 / columns, whatever the rank."""
    for rank in (0, 40):
        model = build("mogrifier", embedding_size=300, hidden_size=300, rank=rank)
        for matrices in model.layers[0].rounds:
            matrix = matrices[0] if not rank else matrices[1] @ matrices[0]
            assert matrix.var().item() == pytest.approx(1 / 300, rel=0.1)


@pytest.mark.parametrize("init", ["uniform", "xavier", 0.3])
def test_gains_and_biases_of_a_normalised_lstm_begin_whatever_its_weights_do(init):
    for layer in LayerNormLSTM(VOCABULARY, recurrent_init=init).layers:
        begins = {"gain_ih": 1.0, "gain_hh": 0.1, "gain_c": 1.0}
        begins |= {"bias_ih": 0.0, "bias_hh": 0.0, "bias_c": 0.0}
        for name, value in begins.items():
            parameter = getattr(layer, name)
            assert torch.equal(parameter, torch.full_like(parameter, value)), name


@pytest.mark.parametrize(
    ("init", "bound"), [("uniform", 160**-0.5), ("xavier", (6 / 200) ** 0.5), (0.3, 0.3)]
)
def test_weights_of_many_cells_and_a_small_projection_begin_within_one_bound(init, bound):
    """By the number of cells; with xavier by rows and columns of each gate's block."""
    torch.manual_seed(1)
    sizes = {"embedding_size": 40, "hidden_size": 160, "projection_size": 40}
    for layer in LSTMP(VOCABULARY, recurrent_init=init, **sizes).layers:
        for weight in (layer.weight_ih, layer.weight_hh, layer.weight_hr):
            assert weight.abs().max().item() == pytest.approx(bound, rel=0.01)
            assert weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.03)
        for bias in (layer.bias_ih, layer.bias_hh):
            expected = 0.0 if init == "xavier" else bound
            assert bias.abs().max().item() == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize("init", ["xavier", "orthogonal"])
def test_initialisers_of_a_projection(init):
    layer = build("lstmp", recurrent_init=init, forget_gate_bias=1.0).layers[0]
    assert layer.weight_hr.shape == (7, 9)
    assert layer.weight_hh.shape == (36, 7)
    assert layer.bias_ih.view(4, 9).sum(1).tolist() == [0, 9, 0, 0]
    if init == "orthogonal":
        torch.testing.assert_close(layer.weight_hr @ layer.weight_hr.T, torch.eye(7))
        block = layer.weight_hh.chunk(4)[2]
        torch.testing.assert_close(block.T @ block, torch.eye(7))


def test_an_lstm_with_projection_is_that_of_pytorch():
    torch.manual_seed(3)
    layer, plain = build("lstmp").layers[0], nn.LSTM(6, 9, proj_size=7, batch_first=True)
    plain.load_state_dict({f"{name}_l0": value for name, value in layer.state_dict().items()})
    inputs = torch.randn(3, 5, 6)
    state = torch.randn(3, 7), torch.randn(3, 9)
    found, after = layer(inputs, torch.zeros(3, 5, dtype=torch.bool), state)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is slow
        expected, expected_after = plain(inputs, tuple(part[None] for part in state))
    torch.testing.assert_close(found, expected)
    for one, other in zip(after, expected_after, strict=True):
        torch.testing.assert_close(one, other[0])


def test_the_last_layer_of_a_tied_model_is_as_large_as_its_embedding():
    model = build("lstm", num_layers=3, tie_weights=True, forget_gate_bias=1.0)
    assert [layer.hidden_size for layer in model.layers] == [7, 7, 6]
    assert model.hidden_size == 6
    assert model.layers[2].bias_ih[6:12].tolist() == [1.0] * 6


def test_dropout_is_zero_in_evaluation_and_on_every_connection_in_training():
    for kind in KINDS:
        model = build(kind, dropout=0.5)
        tokens, resets, _ = laid_out([[1, 2, 3, 4]], 1)
        model.eval()
        a, b = (model(tokens, resets, model.initial_state(1))[0] for _ in range(2))
        assert torch.equal(a, b)
        model.train()
        a, b = (model(tokens, resets, model.initial_state(1))[0] for _ in range(2))
        assert not torch.equal(a, b)
