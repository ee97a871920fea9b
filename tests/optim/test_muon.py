"""Muon with Adam: against torch's two optimisers, gate by gate, and through trainings."""

from copy import deepcopy
from typing import Any

import pytest
import torch
from fitted import Fitted, Place, assert_same
from slow_models import MinimalGated

from lmkit.assembly import build_model
from lmkit.config.optimizer import named_parameters
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
)
from lmkit.optim import Groups, MuonWithAdam, muon

SHAPES = {
    "model.embedding.weight": (11, 6),
    "model.layers.0.weight_ih": (32, 6),
    "model.layers.0.weight_hh": (32, 8),
    "model.layers.0.bias_ih": (32,),
    "model.projection.weight": (5, 9),
    "head.weight": (11, 8),
    "head.bias": (11,),
}
HIDDEN = {
    "model.layers.0.weight_ih": 4,
    "model.layers.0.weight_hh": 4,
    "model.projection.weight": 1,
}


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Place:
    return Place(tmp_path_factory.mktemp("place"))


def parameters(seed: int = 0) -> dict[str, torch.nn.Parameter]:
    torch.manual_seed(seed)
    named = {name: torch.nn.Parameter(torch.randn(shape)) for name, shape in SHAPES.items()}
    for name in ("model.layers.0.weight_ih", "model.layers.0.weight_hh"):
        named[name].blocks = [8] * 4  # as those of an LSTM's layer
    return named


def with_gradients(named: dict[str, torch.nn.Parameter], step: int) -> None:
    torch.manual_seed(step)
    for parameter in named.values():
        parameter.grad = torch.randn_like(parameter)


def trained(named: dict[str, torch.nn.Parameter], optimizer: Any, steps: range) -> list[Any]:
    for step in steps:
        with_gradients(named, step)
        optimizer.step()
    return [parameter.detach().clone() for parameter in named.values()]


@pytest.mark.parametrize("by_gate", [True, False])
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("adjust", ["match_rms_adamw", "original"])
def test_updates_are_those_of_torchs_two_optimisers(by_gate, fused, adjust):
    """Each gate's block is a parameter of its own for torch.optim.Muon."""
    named, theirs = parameters(), parameters()
    settings = {"lr": 0.02, "weight_decay": 0.1}
    ours = MuonWithAdam(
        list(named.items()), **settings, adam_lr=0.01, adjust_lr_fn=adjust, by_gate=by_gate,
        fused=fused,
    )  # fmt: skip
    blocks = {
        name: [torch.nn.Parameter(b.detach()) for b in theirs[name].chunk(n if by_gate else 1)]
        for name, n in HIDDEN.items()
    }
    muon = torch.optim.Muon(
        [block for each in blocks.values() for block in each], **settings, adjust_lr_fn=adjust
    )
    others = [parameter for name, parameter in theirs.items() if name not in HIDDEN]
    adam = torch.optim.AdamW(others, lr=0.01, weight_decay=0.1, fused=fused)
    for step in range(5):
        with_gradients(theirs, step)
        for name, number in HIDDEN.items():
            for block, grad in zip(
                blocks[name], theirs[name].grad.chunk(number if by_gate else 1), strict=True
            ):
                block.grad = grad
        muon.step()
        adam.step()
    for name, weight in zip(named, trained(named, ours, range(5)), strict=True):
        expected = torch.cat([b.detach() for b in blocks[name]]) if name in HIDDEN else theirs[name]
        assert torch.equal(weight, expected), name


def test_a_matrix_changes_by_its_gradient_with_singular_values_near_one():
    """The iteration is a polynomial in the singular values, here computed from their exact
    decomposition in float64."""
    named = parameters()
    before = named["model.projection.weight"].detach().clone()
    with_gradients(named, 1)
    grad = named["model.projection.weight"].grad.double()
    MuonWithAdam(list(named.items()), lr=1.0, momentum=0.0, adjust_lr_fn="original").step()
    u, s, v = torch.linalg.svd(grad / grad.norm(), full_matrices=False)
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    assert ((s > 0.6) & (s < 1.3)).all()
    change = before - named["model.projection.weight"].detach()
    torch.testing.assert_close(change.double(), u @ s.diag() @ v, atol=0.03, rtol=0)


def test_bits_do_not_depend_on_the_number_of_threads():
    found = []
    for threads in (1, 2):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            torch.manual_seed(0)
            weight = torch.nn.Parameter(torch.randn(800, 200))
            weight.grad = torch.randn(800, 200)
            weight.blocks = [200] * 4
            MuonWithAdam([("model.layers.0.weight_hh", weight)], lr=0.1).step()
        finally:
            torch.set_num_threads(before)
        found.append(weight.detach())
    assert torch.equal(*found)


def test_a_state_that_is_loaded_goes_on_as_it_would_have():
    named = parameters()
    optimizer = MuonWithAdam(list(named.items()))
    trained(named, optimizer, range(3))
    again = {name: torch.nn.Parameter(p.detach().clone()) for name, p in named.items()}
    other = MuonWithAdam(list(again.items()))
    other.load_state_dict(deepcopy(optimizer.state_dict()))
    for one, two in zip(
        trained(named, optimizer, range(3, 6)), trained(again, other, range(3, 6)), strict=True
    ):
        assert torch.equal(one, two)
    assert repr(optimizer.state_dict()) == repr(other.state_dict())


def test_a_parameter_without_a_gradient_stays():
    named = parameters()
    optimizer = MuonWithAdam(list(named.items()), weight_decay=0.1)
    with_gradients(named, 0)
    for name in ("model.layers.0.weight_hh", "head.bias"):
        named[name].grad = None
    before = {name: parameter.detach().clone() for name, parameter in named.items()}
    optimizer.step()
    same = {name for name, parameter in named.items() if torch.equal(parameter, before[name])}
    assert same == {"model.layers.0.weight_hh", "head.bias"}


def test_gradients_of_a_loss_scaler_are_unscaled_for_both():
    """A fused Adam alone would do so in its step, and the matrices would stay in the scale."""
    steps = []
    for scaler in (torch.amp.GradScaler("cpu", init_scale=2.0**10), None):
        named = parameters()
        optimizer = MuonWithAdam(list(named.items()))
        loss = sum((parameter**3).sum() for parameter in named.values())
        (loss if scaler is None else scaler.scale(loss)).backward()
        optimizer.step() if scaler is None else scaler.step(optimizer)
        steps.append([parameter.detach() for parameter in named.values()])
    for one, other in zip(*steps, strict=True):
        torch.testing.assert_close(one, other)


def rates(named: dict[str, torch.nn.Parameter], optimizer: MuonWithAdam) -> dict[str, float]:
    names = {id(parameter): name for name, parameter in named.items()}
    return {names[id(p)]: group["lr"] for group in optimizer.param_groups for p in group["params"]}


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        ({}, (0.1, 0.2)),
        ({"*": {"lr": 1.0}}, (1.0, 1.0)),
        ({"*": {"adam_lr": 2.0}}, (0.1, 2.0)),
        ({"*": {"lr": 1.0, "adam_lr": 2.0}}, (1.0, 2.0)),
    ],
)
def test_rates_of_a_group_count_before_those_of_the_optimiser(groups, expected):
    named = parameters()
    params = Groups(groups).of(named.items(), with_names=True)
    found = rates(named, MuonWithAdam(params, lr=0.1, adam_lr=0.2))
    assert found == {name: expected[name not in HIDDEN] for name in named}


def test_without_a_rate_of_its_own_adam_has_that_of_muon():
    named = parameters()
    assert set(rates(named, MuonWithAdam(list(named.items()), lr=0.3)).values()) == {0.3}


def test_a_layer_may_be_one_matrix_and_another_not():
    named = parameters()
    params = Groups({"weight_hh": {"by_gate": False}}).of(named.items(), with_names=True)
    whole, other = parameters(), parameters()
    got = trained(named, MuonWithAdam(params), range(2))
    stacked = trained(whole, MuonWithAdam(list(whole.items()), by_gate=False), range(2))
    gated = trained(other, MuonWithAdam(list(other.items())), range(2))
    for name, *weights in zip(SHAPES, got, stacked, gated, strict=True):
        assert torch.equal(weights[0], weights[1 if name.endswith("weight_hh") else 2]), name


GATES = {
    "lstm": (LSTM, {}, {"weight_ih": [8] * 4, "weight_hh": [8] * 4}),
    "gru": (GRU, {}, {"weight_ih": [8] * 3, "weight_hh": [8] * 3}),
    "elman": (Elman, {}, {"weight_ih": [8], "weight_hh": [8]}),
    "lstmp": (
        *(LSTMP, {"hidden_size": 16, "projection_size": 8}),
        {"weight_ih": [16] * 4, "weight_hh": [16] * 4, "weight_hr": [8]},
    ),
    "mogrifier": (
        *(Mogrifier, {"rounds": 2}),
        {"weight_ih": [8] * 4, "weight_hh": [8] * 4, "rounds.0.0": [6], "rounds.1.0": [8]},
    ),
    "layer_norm_lstm": (LayerNormLSTM, {}, {"weight_ih": [8] * 4, "weight_hh": [8] * 4}),
    "qrnn": (QRNN, {"pooling": "ifo"}, {"weight_ih": [8] * 4}),
    "min_gru": (MinGRU, {"state_expansion": 2}, {"weight_ih": [16] * 2, "weight_ho": [8]}),
    "min_lstm": (MinLSTM, {}, {"weight_ih": [8] * 3}),
    "slstm": (SLSTM, {"num_heads": 4}, {"weight_ih": [8] * 4, "weight_hh": [2] * 16}),
    "mlstm": (MLSTM, {"num_heads": 2}, {"weight_ih": [8] * 4 + [2] * 2}),
    "blocks": (
        *(LSTM, {"residual": "rms_norm", "expansion": 2}),
        {
            **{"cell.weight_ih": [8] * 4, "cell.weight_hh": [8] * 4, "projection.weight": [8]},
            **{"up.weight": [16], "down.weight": [8]},
        },
    ),
    "own cell": (MinimalGated, {}, {"weight_ih": [8] * 2, "weight_hh": [8] * 2}),
}


@pytest.mark.parametrize("cell", GATES)
def test_each_gate_of_a_cell_is_a_matrix_of_its_own(cell):
    """As if torch.optim.Muon had a parameter for each."""
    kind, settings, rows = GATES[cell]
    torch.manual_seed(1)
    sizes = {"embedding_size": 6, "hidden_size": 8, "num_layers": 1}
    model = kind(11, **{**sizes, **settings})
    named = {f"model.{name}": parameter for name, parameter in model.named_parameters()}
    blocks = {
        f"model.layers.0.{name}": [
            torch.nn.Parameter(block.detach().clone())
            for block in named[f"model.layers.0.{name}"].split(each)
        ]
        for name, each in rows.items()
    }
    ours = MuonWithAdam(list(named.items()), lr=0.02)
    matrices = [block for each in blocks.values() for block in each]
    theirs = torch.optim.Muon(matrices, lr=0.02, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
    for step in range(3):
        with_gradients(named, step)
        for name, each in blocks.items():
            for block, grad in zip(
                each, named[name].grad.split([len(block) for block in each]), strict=True
            ):
                block.grad = grad.clone()
        ours.step()
        theirs.step()
    for name, each in blocks.items():
        assert torch.equal(named[name], torch.cat(each)), name
    by_muon = {name for name, parameter in named.items() if len(ours.state[parameter]) == 1}
    assert by_muon == set(blocks)


def test_a_state_from_before_goes_on_with_its_blocks():
    """Then a matrix had a number of equal blocks, for some cells not that of the gates."""
    named, theirs = parameters(), parameters()
    optimizer, other = (MuonWithAdam(list(each.items())) for each in (named, theirs))
    state = optimizer.state_dict()
    assert state["param_groups"][0]["blocks"] == [[8] * 4, [8] * 4, [5]]
    state["param_groups"][0]["blocks"] = [8, 2, 1]
    other.load_state_dict(state)
    assert other.state_dict()["param_groups"][0]["blocks"] == [8, 2, 1]
    names = list(HIDDEN)
    for name, number in zip(names, (8, 2, 1), strict=True):
        named[name].blocks = [len(named[name]) // number] * number
    expected = trained(named, MuonWithAdam(list(named.items())), range(3))
    for one, found in zip(expected, trained(theirs, other, range(3)), strict=True):
        assert torch.equal(one, found)


MODELS = {
    "LSTM": ({"num_layers": 2}, {"weight_ih": 4, "weight_hh": 4}),
    "GRU": ({"num_layers": 2}, {"weight_ih": 3, "weight_hh": 3}),
    "Elman": ({"num_layers": 2}, {"weight_ih": 1, "weight_hh": 1}),
    "Window": ({"context": 3}, {"projection.weight": 1}),
}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("model", MODELS)
def test_the_matrices_of_the_hidden_layers_and_their_gates(model, tied):
    settings, expected = MODELS[model]
    sizes = {"embedding_size": 6, "hidden_size": 6 if tied else 10, "tie_weights": tied}
    config = {
        "model": {"_target_": f"lmkit.model.{model}", **sizes, **settings},
        "head": {"_target_": "lmkit.head.FullSoftmax"},
    }
    named = named_parameters(*build_model(config, 12))
    names = {id(parameter): name for name, parameter in named}
    found = {}
    for group in MuonWithAdam(named).param_groups:
        blocks = group["blocks"] or [None] * len(group["params"])
        found |= {names[id(p)]: (p, own) for p, own in zip(group["params"], blocks, strict=True)}
    for name, (parameter, own) in found.items():
        gates = [n for ending, n in expected.items() if name.endswith(ending)]
        assert own == ([len(parameter) // gates[0]] * gates[0] if gates else None), name


def test_parameters_without_names_are_refused():
    with pytest.raises(TypeError, match=r"pairs of names and parameters: task.named_parameters()"):
        MuonWithAdam([torch.nn.Parameter(torch.zeros(2, 2))])


@pytest.mark.parametrize(
    "keys",
    [
        ("optimizer.weight_decay=0.1", "scheduler=one_cycle", "trainer.gradient_clip_val=0.1"),
        ("optimizer.adam_lr=1e-2", "optimizer.groups.bias={lr: 0.1, weight_decay: 0}"),
    ],
    ids=["one cycle", "groups"],
)
def test_killed_and_gone_on_with_is_the_same_run(place, keys):
    keys = ("callbacks.checkpoint.every_n_train_steps=4", "optimizer=muon", *keys)
    keys = (*keys, "optimizer.lr=0.01", "model.tie_weights=false")
    assert_same(place.fit(*keys), place.train(*keys, kill_at=(7, 21)))


def test_a_run_from_before_that_is_made_longer_keeps_its_blocks(place, monkeypatch):
    keys = ("optimizer=muon", "optimizer.lr=0.01", "scheduler=linear", "model.tie_weights=false")
    config, longer = place.config(*keys, "trainer.max_steps=6"), place.config(*keys)
    run = place._new_run(config)
    with monkeypatch.context() as patch:
        patch.setattr(muon, "_blocks", lambda matrix: 2)  # their number
        run.start(config)
        place._work(run, config, None)
        run.release()
    run.check(longer)
    run.start(longer)
    place._work(run, longer, None)
    run.release()
    (state,) = Fitted(run.path).checkpoint["optimizer_states"]
    assert state["param_groups"][0]["blocks"] == [2, 2]
    assert len(Fitted(run.path).of("lr")) == 36


def test_the_rates_of_both_are_logged_where_they_differ(place):
    keys = ("optimizer=muon", "optimizer.lr=0.02", "trainer.max_steps=3")
    assert "lr/adam" not in {key for row in place.fit(*keys).rows for key in row}
    fitted = place.fit(*keys, "optimizer.adam_lr=0.01", "scheduler=linear")
    assert fitted.of("lr/adam") == [lr / 2 for lr in fitted.of("lr")]
