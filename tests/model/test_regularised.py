"""Weight drop, word dropout, zoneout, dropout of the state, capped gates, sums of layers and sizes
of their own, against loops with masks by hand."""

import pytest
import torch
from scanned_cells import SCANNED
from slow_cells import SLOW_CELLS, build_cell, slow_lstm
from torch import nn

from lmkit import kernels
from lmkit.config.check import check
from lmkit.config.compose import compose
from lmkit.errors import UserError
from lmkit.model import GRU, LSTM, Elman, Masks, Reader
from lmkit.model.dropout import masked

VOCABULARY, SIZE = 11, 6
PLACE = (3, 1, 4)  # seed, epoch, window
SETTINGS = ["weight_dropout", "word_dropout", "zoneout"]
KINDS = ["lstm", "compiled lstm", "gru", "tanh", "relu", "sigmoid", *SLOW_CELLS]
BLOCKS = [f"residual {kind}" for kind in KINDS]
LSTMS = ["lstm", "compiled lstm", *SLOW_CELLS]
EACH = [
    *((kind, setting) for kind in (*KINDS, *BLOCKS) for setting in SETTINGS),
    *((f"{block}{kind}", "state_dropout") for block in ("", "residual ") for kind in LSTMS),
]


def build(kind, **settings):
    torch.manual_seed(3)
    if kind in BLOCKS:
        cell = kind.removeprefix("residual ")
        return build(cell, residual="rms_norm", expansion=1.5, **settings)
    settings = {"embedding_size": SIZE, "hidden_size": SIZE, "init_range": 1.0, **settings}
    if kind in SLOW_CELLS:
        return build_cell(kind, VOCABULARY, **settings)
    if kind in SCANNED:
        return SCANNED[kind](VOCABULARY, **settings)
    if kind == "lstm":
        model = LSTM(VOCABULARY, **settings)
        model.forward = kernels.use("torch")(model.forward)
        return model
    if kind == "compiled lstm":
        return LSTM(VOCABULARY, **settings)
    if kind == "gru":
        return GRU(VOCABULARY, **settings)
    return Elman(VOCABULARY, nonlinearity=kind, **settings)


def mask(shape, p, name):
    """The mask of a name in the window of PLACE, its scale in it."""
    key = Masks(*PLACE).key(name)
    return masked(torch.ones(shape), key, 0, round(p * 2**32), 1 / (1 - p))


def windows(lanes=4, time=9):
    torch.manual_seed(5)
    tokens = torch.randint(VOCABULARY, (lanes, time))
    resets = torch.zeros(lanes, time, dtype=torch.bool)
    resets[:, 0] = True
    resets[1, 4] = resets[3, 7] = True
    return tokens, resets


def output(model, tokens, resets, first=0, lanes=None):
    with Masks(*PLACE, first, lanes).use():
        return model(tokens, resets, model.initial_state(len(tokens)))


def gradients(model, hidden):
    model.zero_grad()
    torch.manual_seed(7)
    (hidden * torch.randn(hidden.shape)).sum().backward()
    return {
        name: p.grad.to_dense() if p.grad.is_sparse else p.grad
        for name, p in model.named_parameters()
    }


@pytest.mark.parametrize("kind", [*KINDS, *BLOCKS])
def test_weight_drop_is_a_model_with_fewer_recurrent_weights(kind):
    """Outputs and gradients; those of the weights that a window leaves out are zero."""
    model, plain = build(kind, weight_dropout=0.4).train(), build(kind).train()
    tokens, resets = windows()
    kept = []
    for number, layer in enumerate(plain.cells):
        kept.append(mask(layer.weight_hh.shape, 0.4, f"layers.{number}.weight_hh"))
        layer.weight_hh.data.mul_(kept[-1])
    hidden, expected = (output(each, tokens, resets).hidden for each in (model, plain))
    torch.testing.assert_close(hidden, expected)
    found, wanted = gradients(model, hidden), gradients(plain, expected)
    for number, each in enumerate(kept):
        assert 0.2 < (each == 0).float().mean() < 0.6
        within = "cell." if kind in BLOCKS else ""
        wanted[f"layers.{number}.{within}weight_hh"] *= each
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, wanted[name], atol=1e-5, rtol=1e-5, msg=name)


@pytest.mark.parametrize(("kind", "setting"), EACH)
def test_processes_leave_out_what_one_would(kind, setting):
    model = build(kind, **{setting: 0.4}).train()
    tokens, resets = windows()
    whole = output(model, tokens, resets).hidden
    parts = [
        output(model, tokens[half], resets[half], half.start, 4).hidden
        for half in (slice(0, 2), slice(2, 4))
    ]
    torch.testing.assert_close(torch.cat(parts), whole, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(("kind", "setting"), EACH)
def test_another_window_leaves_out_others_and_evaluation_none(kind, setting):
    model, plain = build(kind, **{setting: 0.4}), build(kind).eval()
    tokens, resets = windows()
    found = []
    for window in (4, 4, 5):
        with Masks(3, 1, window).use():
            found.append(model.train()(tokens, resets, model.initial_state(4)).hidden)
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    evaluated = output(model.eval(), tokens, resets).hidden
    assert torch.equal(evaluated, output(plain, tokens, resets).hidden) == (setting != "zoneout")
    assert model.state_dict().keys() == plain.state_dict().keys()


def slow_step(kind, layer, x, state):
    """The new state of one layer and lane by the formulas, before zoneout; x (input_size,)."""
    if kind in SLOW_CELLS:
        return SLOW_CELLS[kind](layer, x, state)
    if "lstm" in kind:
        return slow_lstm(layer, x, state)
    gates = layer.weight_ih @ x + layer.bias_ih
    past = layer.weight_hh @ state[0] + layer.bias_hh
    if kind == "gru":
        (r, z, n), (pr, pz, pn) = gates.chunk(3), past.chunk(3)
        n = (n + (r + pr).sigmoid() * pn).tanh()
        return ((1 - (z + pz).sigmoid()) * n + (z + pz).sigmoid() * state[0],)
    return (getattr(torch, kind)(gates + past),)


def by_hand(kind, model, tokens, resets, rates, training):
    """Hidden vectors with zoneout: a unit that is zoned out keeps its value; evaluation takes the
    mean (Krueger et al. 2017). With dropout of the state: what a layer reads of its last output is
    masked, alike at all positions (Gal and Ghahramani 2016)."""
    hidden = model.embedding.weight[tokens]
    layers = []
    for number, layer in enumerate(model.layers):
        sizes = [part.shape[1] for part in layer.initial_state(1)]
        kept = [  # 0 or 1, as the mask of dropout has the scale in it
            (mask((*tokens.shape, size), p, f"layers.{number}.zoneout.{i}") != 0).float()
            for i, (p, size) in enumerate(zip(rates, sizes, strict=True))
        ]
        read = torch.ones(len(tokens), sizes[0])
        if training and layer.state_dropout:
            read = mask(read.shape, layer.state_dropout, f"layers.{number}.state")
        lanes = []
        for lane, reset in enumerate(resets.tolist()):
            state = [torch.zeros(size) for size in sizes]
            outputs = []
            for t, is_reset in enumerate(reset):
                seen = [state[0] * read[lane], *state[1:]]
                new = slow_step(kind, layer, hidden[lane, t], seen)
                shares = [
                    k[lane, t] if training else 1 - p for k, p in zip(kept, rates, strict=True)
                ]
                state = [
                    s * n + (1 - s) * old for s, n, old in zip(shares, new, state, strict=True)
                ]
                state = [torch.zeros_like(s) if is_reset else s for s in state]
                outputs.append(state[0])
            lanes.append(torch.stack(outputs))
        hidden = torch.stack(lanes)
        layers.append(hidden)
    return sum(layers) if model.sum_layers else hidden


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("training", [True, False])
def test_zoneout_is_that_of_the_formulas_forward_and_backward(kind, training):
    settings = {"zoneout": 0.3}
    if kind in LSTMS:
        settings["cell_zoneout"] = 0.5
    rates = [0.3, 0.5] if "cell_zoneout" in settings else [0.3]
    assert_by_hand(kind, build(kind, **settings).train(training), rates, training)


@pytest.mark.parametrize("kind", LSTMS)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "settings",
    [
        *({"state_dropout": 0.4}, {"cap_input_gate": True}, {"sum_layers": True}),
        {"state_dropout": 0.4, "cap_input_gate": True, "sum_layers": True, "zoneout": 0.3},
    ],
    ids=lambda settings: "+".join(settings),
)
def test_what_melis_et_al_add_is_that_of_the_formulas(kind, training, settings):
    rates = [settings.get("zoneout", 0.0)] * 2
    assert_by_hand(kind, build(kind, **settings).train(training), rates, training)


@pytest.mark.parametrize("kind", ["gru", "tanh", "relu"])
def test_outputs_of_other_layers_are_added_too(kind):
    assert_by_hand(kind, build(kind, num_layers=3, sum_layers=True).train(), [0.0], True)


def test_raw_is_the_sum_of_all_layers_before_dropout():
    tokens, resets = windows()
    dropped = output(build("lstm", sum_layers=True, output_dropout=0.5).train(), tokens, resets)
    kept = dropped.hidden != 0
    assert 0.3 < kept.float().mean() < 0.7
    assert torch.equal(dropped.hidden[kept], 2 * dropped.raw[kept])
    plain = output(build("lstm", sum_layers=True).train(), tokens, resets)
    assert plain.raw is plain.hidden


def assert_by_hand(kind, model, rates, training):
    tokens, resets = windows()
    found = output(model, tokens, resets).hidden
    expected = by_hand(kind, model, tokens, resets, rates, training)
    counts = ~resets  # what stands at a reset has no meaning
    torch.testing.assert_close(found[counts], expected[counts], atol=1e-6, rtol=1e-5)
    wanted = {}
    for name, hidden in (("expected", expected), ("found", found)):
        wanted[name] = gradients(model, hidden * counts[..., None])
    for name, gradient in wanted["found"].items():
        expected_gradient = wanted["expected"][name]
        atol = 1e-5 + 2e-6 * float(expected_gradient.abs().max())
        torch.testing.assert_close(gradient, expected_gradient, atol=atol, rtol=1e-4, msg=name)


@pytest.mark.parametrize("kind", KINDS)
def test_zoneout_does_not_depend_on_the_windows_in_evaluation(kind):
    model = build(kind, zoneout=0.3).eval()
    tokens, resets = windows()
    whole = output(model, tokens, resets).hidden
    reader = Reader(model)
    parts = [reader.read(tokens[:, w], resets[:, w]).hidden for w in (slice(0, 4), slice(4, 9))]
    torch.testing.assert_close(torch.cat(parts, 1), whole)


@pytest.mark.parametrize("block", ["", "residual "])
@pytest.mark.parametrize("kind", ["lstm", "lstmp", "mogrifier"])
@pytest.mark.parametrize("value", [0.5, 0.0])  # 0 is another value than none
def test_settings_of_lstms_reach_every_cell_also_in_blocks(kind, block, value):
    shares = {"zoneout": 0.3, "cell_zoneout": value, "state_dropout": 0.4}
    model = build(block + kind, cap_input_gate=True, forget_gate_bias=value, **shares)
    assert len(model.cells) == 2
    for cell in model.cells:
        assert (cell.cap_input_gate, cell.state_dropout) == (True, 0.4)
        assert cell.zoneout == (0.3, value)
        forget = (cell.bias_ih + cell.bias_hh).chunk(4)[1]
        assert forget.tolist() == [value] * len(forget)


@pytest.mark.parametrize("kind", LSTMS)
def test_a_capped_gate_keeps_cells_between_minus_one_and_one(kind):
    model = build(kind, cap_input_gate=True).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(9)
    tokens, resets = windows(time=60)
    state = output(model, tokens, resets).state
    assert all(layer[1].abs().max() <= 1 for layer in state)


def test_in_evaluation_dropout_of_the_state_leaves_the_kernel_be():
    plain, dropped = build("compiled lstm").eval(), build("compiled lstm", state_dropout=0.4).eval()
    tokens, resets = windows()
    found, expected = (output(each, tokens, resets).hidden for each in (dropped, plain))
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"residual": "rms_norm"}, "residual=rms_norm"),
        ({"hidden_sizes": [5, 6]}, "layers of [5, 6] units"),
        ({"hidden_size": 9, "tie_weights": True}, "layers of [9, 6] units"),
    ],
)
def test_only_layers_of_one_size_are_added(settings, what):
    with pytest.raises(UserError) as refused:
        build("lstm", sum_layers=True, **settings)
    assert str(refused.value) == (
        f"model.sum_layers=true with {what}: the outputs of layers of one size are added; set "
        "model.sum_layers=false, or one size and no residual blocks (with model.tie_weights=true "
        "the last layer has model.embedding_size)"
    )


@pytest.mark.parametrize("kind", [*KINDS, *BLOCKS, *SCANNED])
def test_a_window_begins_from_the_zero_state_in_a_share_of_the_lanes(kind):
    """The others go on, all tensors of a lane's state together; an evaluation always does."""
    model = build(kind, fresh_state=0.5)
    tokens = torch.randint(VOCABULARY, (12, 3), generator=torch.manual_seed(2))
    none = torch.zeros(12, 3, dtype=torch.bool)
    torch.manual_seed(4)
    state = tuple(
        tuple(torch.rand_like(part) - 0.5 for part in layer) for layer in model.initial_state(12)
    )
    kept = mask((12,), 0.5, "state") != 0
    assert 2 < kept.sum() < 10
    begun = tuple(
        tuple(torch.stack([part[lane] * kept[lane] for lane in range(12)]) for part in layer)
        for layer in state
    )
    with Masks(*PLACE).use():
        found = model.train()(tokens, none, state).hidden
        goes_on = model.eval()(tokens, none, state).hidden
    torch.testing.assert_close(found, model(tokens, none, begun).hidden)
    torch.testing.assert_close(goes_on[kept], found[kept])
    assert not torch.isclose(goes_on[~kept], found[~kept]).all()
    half = tuple(tuple(part[6:] for part in layer) for layer in state)
    with Masks(*PLACE, 6, 12).use():  # as the second of two processes
        torch.testing.assert_close(model.train()(tokens[6:], none[6:], half).hidden, found[6:])


def test_only_in_kernels_do_threads_change_no_bit():
    assert build("lstm").any_threads
    assert not build("lstm", state_dropout=0.1).any_threads
    assert not build("lstm", cap_input_gate=True).any_threads
    assert not build("lstm", cell_zoneout=0.1).any_threads
    assert LSTM.any_threads
    for kind in (*SLOW_CELLS, *BLOCKS):
        assert not build(kind).any_threads


@pytest.mark.parametrize("tied", [True, False])
def test_word_dropout_leaves_words_out_of_the_inputs_alone(tied):
    """The same words at every position and in every lane; the others are scaled up."""
    model = build("lstm", word_dropout=0.4, tie_weights=tied).train()
    kept = mask((VOCABULARY,), 0.4, "words")
    assert 0 < (kept == 0).sum() < VOCABULARY
    plain = build("lstm", tie_weights=False).train()
    plain.embedding.weight.data = model.embedding.weight.detach() * kept[:, None]
    tokens, resets = windows()
    found = output(model, tokens, resets).hidden
    torch.testing.assert_close(found, output(plain, tokens, resets).hidden)
    rows = gradients(model, found)["embedding.weight"].abs().sum(1)
    assert ((rows == 0) | (kept != 0))[tokens.unique()].all()
    assert torch.equal(model.embedding.matrix(), model.embedding.weight)


def test_layers_may_have_sizes_of_their_own():
    model = build("gru", hidden_sizes=[5, 9, 4])
    assert [layer.hidden_size for layer in model.layers] == [5, 9, 4]
    assert model.hidden_size == 4
    tokens, resets = windows()
    assert output(model, tokens, resets).hidden.shape == (4, 9, 4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["model.hidden_sizes=[]"], "model.hidden_sizes=[]: name the size of at least one layer"),
        (
            ["model.hidden_sizes=[9,8]", "model.embedding_size=6"],
            "model.hidden_sizes ends with 8 but model.embedding_size=6: tied weights need them "
            "equal; set model.tie_weights=false or make them equal",
        ),
    ],
)
def test_sizes_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(UserError) as refused:
        check(compose(["name=a", *settings]))
    assert message in str(refused.value)


def test_a_mask_changes_no_parameter():
    model = build("lstm", weight_dropout=0.5, word_dropout=0.5).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    tokens, resets = windows()
    output(model, tokens, resets).hidden.sum().backward()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(isinstance(p, nn.Parameter) for p in model.parameters())
