"""Settings of an optimiser by the names of parameters: against loops over parameters, and what is
told of a pattern before training."""

import json
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from fitted import Fitted, Place, assert_same
from hypothesis import given
from hypothesis import strategies as st

from lmkit.assembly import make_data
from lmkit.config.check import check
from lmkit.config.compose import compose
from lmkit.errors import UserError
from lmkit.optim import Groups, learning_rates
from lmkit.run import Run
from lmkit.run.history import refused
from lmkit.training.callbacks.non_finite import _hint
from lmkit.training.components import make_task

OFTEN = "callbacks.checkpoint.every_n_train_steps=4"
ADAM = ("optimizer=adam", "optimizer.lr=0.01", "trainer.gradient_clip_val=0.5")
GROUPS = (
    *("optimizer.groups.bias={weight_decay: 0, lr: 0.02}", "optimizer.weight_decay=0.01"),
    "optimizer.groups={model.embedding.weight: {lr: 0.001}}",
)
NAMES = ["model.embedding.weight", "model.layers.0.weight_hh", "model.layers.0.bias", "head.bias"]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Place:
    return Place(tmp_path_factory.mktemp("place"))


def mistakes(*argv: str) -> list[str]:
    with pytest.raises(UserError) as error:
        check(compose(list(argv)))
    return [line.removeprefix("  ") for line in str(error.value).splitlines()[1:]]


def parameters() -> list[tuple[str, torch.nn.Parameter]]:
    return [(name, torch.nn.Parameter(torch.ones(2, 2))) for name in NAMES]


def divided(groups: dict[str, Any]) -> list[tuple[list[str], dict[str, Any]]]:
    """The names and the settings of each group."""
    named = parameters()
    names = {id(parameter): name for name, parameter in named}
    return [
        ([names[id(p)] for p in group["params"]], {k: v for k, v in group.items() if k != "params"})
        for group in Groups(groups).of(named)
    ]


# ---- which parameters


def test_what_no_pattern_matches_is_the_first_group():
    assert divided({"bias": {"lr": 3}, "*.weight_?h": {"lr": 1}, "head": {"eps": 2}}) == [
        (["model.embedding.weight"], {}),
        (["model.layers.0.bias"], {"lr": 3, "name": "bias"}),
        (["head.bias"], {"lr": 3, "eps": 2, "name": "bias and head"}),
        (["model.layers.0.weight_hh"], {"lr": 1, "name": "weight_ h"}),
    ]


def test_a_pattern_with_a_star_matches_whole_names():
    assert [names for names, _ in divided({"bias*": {"lr": 1}, "model*": {"lr": 1}})] == [
        ["head.bias"],
        ["model.embedding.weight", "model.layers.0.weight_hh", "model.layers.0.bias"],
    ]


def test_without_groups_the_optimiser_gets_parameters_alone():
    named = parameters()
    assert Groups().of(named) == [parameter for _, parameter in named]
    assert Groups().of(named, with_names=True) == named


def test_a_name_typed_as_a_key_has_its_dots():
    nested = {"model": {"layers": {"0": {"bias": {"lr": 1}}}, "lr": 2}}
    assert Groups(nested).by_pattern == {"model.layers.0.bias": {"lr": 1}, "model": {"lr": 2}}
    written = {"model.layers.0.bias": {"lr": 3, "eps": 4}}
    typed = {"model": {"layers": {"0": {"bias": {"lr": 1}}}}}
    assert Groups(written | typed).by_pattern == {"model.layers.0.bias": {"lr": 1, "eps": 4}}


@given(st.lists(st.text("ab.*?[]", min_size=1, max_size=3), unique=True, max_size=4), st.booleans())
def test_every_parameter_is_in_one_group_with_a_name_of_its_own(patterns, with_names):
    named = [(name, torch.nn.Parameter(torch.zeros(1))) for name in ("a", "a.b", "b.b", "ba")]
    groups = Groups({pattern: {"lr": 1.0} for pattern in patterns}).of(named, with_names=with_names)
    if not patterns:
        groups = [{"params": groups}]
    here = [each[1] if with_names else each for group in groups for each in group["params"]]
    assert sorted(map(id, here)) == sorted(id(parameter) for _, parameter in named)
    assert all(group["params"] for group in groups)
    labels = [group["name"] for group in groups if "name" in group]
    assert len(set(labels)) == len(labels)
    assert len(groups) - len(labels) <= 1


# ---- what they are trained with


def by_hand(place: Place, *argv: str, clip: float) -> dict[str, torch.Tensor]:
    """Weights after two epochs of SGD with momentum, parameter by parameter; the settings of each
    by its name, clipped by the norm of all gradients."""
    config = place.config(*argv)
    pl.seed_everything(config["seed"], verbose=False)
    data = make_data(config)
    task = make_task(config, data)
    momenta: dict[str, torch.Tensor] = {}
    loader = data.loader("train", train=True)
    for window in (window for _ in range(2) for window in loader):
        task.zero_grad()
        task.training_step(window, window.index).backward()
        grads = {name: p.grad.to_dense() for name, p in task.named_parameters()}
        norm = sum(grad.double().square().sum() for grad in grads.values()).sqrt()
        share = min(clip / (float(norm) + 1e-6), 1.0)
        with torch.no_grad():
            for name, parameter in task.named_parameters():
                lr = {"model.embedding.weight": 0.05}.get(name, 0.4 if "bias" in name else 0.2)
                decay = 0.0 if "bias" in name else 0.1
                grad = share * grads[name] + decay * parameter
                momenta[name] = momenta[name] * 0.5 + grad if name in momenta else grad
                parameter -= lr * momenta[name]
    return task.state_dict()


@pytest.mark.parametrize("tied", ["true", "false"])
def test_updates_are_those_of_a_loop_over_parameters(place, tied):
    argv = (
        *("optimizer.lr=0.2", "optimizer.momentum=0.5", "optimizer.weight_decay=0.1"),
        "optimizer.groups={*bias*: {lr: 0.4, weight_decay: 0}, model.embedding.weight: {lr: 0.05}}",
        *("trainer.gradient_clip_val=0.3", f"model.tie_weights={tied}"),
    )
    fitted = place.fit(*argv)
    for name, tensor in by_hand(place, *argv, clip=0.3).items():
        torch.testing.assert_close(fitted.weights[name], tensor, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    "argv",
    [
        ("optimizer.lr=0.3", "trainer.gradient_clip_val=0.1", "model.tie_weights=false"),
        (*ADAM, "scheduler=cosine"),
    ],
    ids=["plain SGD", "Adam"],
)
def test_groups_that_change_nothing_change_no_bit(place, argv):
    """The norm is summed in the same order, and plain SGD keeps its rates and sparse gradients."""
    lr = next(key for key in argv if key.startswith("optimizer.lr=")).partition("=")[2]
    grouped = place.fit(*argv, f"optimizer.groups={{bias: {{lr: {lr}}}, hh: {{lr: {lr}}}}}")
    plain = place.fit(*argv)
    assert grouped.rows == plain.rows
    assert all(torch.equal(grouped.weights[name], plain.weights[name]) for name in plain.weights)


def test_a_decay_reaches_the_rows_of_an_embedding_that_no_window_reads(place):
    """Gradients of an untied embedding are sparse under plain SGD only."""
    argv = ("model.tie_weights=false", "optimizer.lr=0.5")
    plain, decayed = place.fit(*argv), place.fit(*argv, "optimizer.weight_decay=0.1")
    rows = (fitted.weights["model.embedding.weight"][0] for fitted in (plain, decayed))
    first, found = rows  # of the byte 0
    torch.testing.assert_close(found, first * (1 - 0.5 * 0.1) ** 36)


def test_plain_sgd_has_its_rates_again_after_a_clipped_step(place):
    argv = ("optimizer.lr=0.3", "optimizer.groups.bias.lr=0.6", "trainer.gradient_clip_val=0.01")
    groups = place.fit(*argv).checkpoint["optimizer_states"][0]["param_groups"]
    assert [group["lr"] for group in groups] == [0.3, 0.6]


@pytest.mark.parametrize(
    "schedule", ["cosine", "linear", "wsd", "one_cycle", "inverse_sqrt", "hold_then_decay", "step"]
)
def test_each_group_has_the_schedule_of_its_own_rate(place, schedule):
    argv = (*ADAM, *GROUPS, f"scheduler={schedule}", "trainer.gradient_clip_val=null")
    fitted = place.fit(*argv)
    rates = [fitted.of(key) for key in ("lr", "lr/bias", "lr/model.embedding.weight")]
    assert len(rates[0]) == len(rates[1]) == len(rates[2]) == 36
    for base, bias, embedding in zip(*rates, strict=True):
        assert bias == pytest.approx(2 * base)
        assert embedding == pytest.approx(base / 10)


def test_rates_that_are_the_same_are_logged_once():
    groups = {"bias": {"weight_decay": 0}, "embedding": {"lr": 1e-3}}
    optimizer = torch.optim.AdamW(Groups(groups).of(parameters()), lr=2e-3)
    assert learning_rates(optimizer) == {"lr": 2e-3, "lr/embedding": 1e-3}


# ---- resumed


@pytest.mark.parametrize("argv", [ADAM, ("optimizer.lr=0.2", "optimizer.momentum=0.5")])
def test_killed_and_gone_on_with_is_the_same_run(place, argv):
    keys = (OFTEN, *argv, *GROUPS, "scheduler=cosine")
    assert_same(place.fit(*keys), place.train(*keys, kill_at=(7, 21)))


def test_a_checkpoint_without_groups_is_as_it_was_before_there_were_any(place):
    (state,) = place.fit(*ADAM).checkpoint["optimizer_states"]
    config = place.config(*ADAM)
    task = make_task(config, make_data(config))
    plain = torch.optim.Adam(task.parameters(), lr=0.01, fused=True).state_dict()
    assert state["param_groups"] == plain["param_groups"]


def test_made_longer_each_group_is_where_its_rate_would_be(place):
    short = ("scheduler=linear", *ADAM, *GROUPS, OFTEN, "trainer.max_steps=20")
    run = Run.named(str(place.outputs), "tiny", "longer")
    rates = []
    for argv in (short, (*short, "trainer.max_steps=36")):
        config = place.config(*argv)
        run.start(config)
        place._work(run, config, None)
        run.release()
        fitted = Fitted(run.path)
        groups = fitted.checkpoint["optimizer_states"][0]["param_groups"]
        rates.append([group["initial_lr"] for group in groups])
    assert rates == [[0.01, 0.02, 0.001]] * 2
    whole = place.fit(*short, "trainer.max_steps=36")
    for key in ("lr", "lr/bias", "lr/model.embedding.weight"):
        assert fitted.of(key)[20:] == whole.of(key)[20:]


def test_once_diverged_the_rate_of_a_group_may_change_too():
    def changed(**settings: float) -> dict[str, Any]:
        return {"optimizer": {"lr": 0.1, "groups": {"model": {"layers": settings}}}}

    then, now = changed(lr=9.0), changed(lr=0.9)
    assert not list(refused(then, now, diverged=True))
    (key,) = list(refused(then, now, diverged=False))
    assert key == ("optimizer.groups.model.layers.lr", 9.0, 0.9)
    assert list(refused(then, changed(lr=9.0, eps=1.0), diverged=True))


@pytest.mark.parametrize("patterns", ["bias", "*"])
def test_a_divergence_is_not_blamed_on_a_schedule_for_the_rate_of_a_group(tmp_path, patterns):
    optimizer = torch.optim.SGD(Groups({patterns: {"lr": 9.0}}).of(parameters()), lr=0.1)
    trainer: Any = SimpleNamespace(default_root_dir=tmp_path, optimizers=[optimizer])
    lower = "; begin another run with a lower optimizer.lr or a trainer.gradient_clip_val"
    assert _hint(trainer, 1) == lower
    optimizer.param_groups[0] |= {"lr": 0.2}
    assert (_hint(trainer, 1) == lower) == (patterns == "*")


@pytest.mark.parametrize("argv", [(*ADAM, *GROUPS, "scheduler=wsd"), ("optimizer=muon",)])
def test_two_processes_train_as_one(place, argv):
    short = ("trainer.max_steps=6", "trainer.limit_test_batches=0", *argv)
    one = place.fit(*short)
    two = place.in_two_processes(*short)
    assert two.of("train/nll") == pytest.approx(one.of("train/nll"), rel=1e-4)
    assert two.of("lr") == one.of("lr")
    (state,) = two.checkpoint["optimizer_states"]
    (alone,) = one.checkpoint["optimizer_states"]
    assert json.dumps(state["param_groups"]) == json.dumps(alone["param_groups"])


# ---- told before training

LAYERS = ", ".join(
    f"model.layers.{layer}.{name}"
    for layer in (0, 1)
    for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
)


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (
            ["optimizer.groups.lstm.lr=1"],
            [
                "optimizer.groups.lstm: no parameter has such a name; there are: "
                f"model.embedding.weight, {LAYERS}, head.bias"
            ],
        ),
        (
            ["optimizer.groups.head.weight.lr=1", "model.tie_weights=true"],
            [
                "optimizer.groups.head.weight: no parameter has such a name; head.weight is "
                "model.embedding.weight, so name that"
            ],
        ),
        (
            ["optimizer.groups={*bias*: {lr: 1}, head: {lr: 2, eps: 1}, layers: {lr: 1}}"],
            [
                "optimizer.groups.*bias*.lr=1.0 but optimizer.groups.head.lr=2.0: both are of "
                "head.bias; make them equal, or one name match less"
            ],
        ),
        (
            ["optimizer.groups={bias: {eps: 1}, layers: {eps: 2}}"],
            [
                "optimizer.groups.bias.eps=1.0 but optimizer.groups.layers.eps=2.0: both are of "
                "model.layers.0.bias_ih and 3 more; make them equal, or one name match less"
            ],
        ),
        (
            [
                *("optimizer.groups.bias.weight_dekay=0", "optimizer.groups.head=3"),
                *("optimizer.groups.hh.lr=fast", "optimizer.groups.ih={}"),
                "optimizer.groups.layers.lr=-1",
            ],
            [
                "optimizer.groups.bias.weight_dekay is not a key of torch.optim.Adam; did you mean "
                "optimizer.groups.bias.weight_decay?",
                "optimizer.groups.head: expected keys of torch.optim.Adam, as {weight_decay: 0}, "
                "found int",
                "optimizer.groups.hh.lr=fast: expected float, found text",
                "optimizer.groups.ih: expected keys of torch.optim.Adam, as {weight_decay: 0}, "
                "found none",
                "optimizer.groups.layers.lr=-1.0: Invalid learning rate: -1.0",
            ],
        ),
        (
            ["optimizer.groups=3"],
            ["optimizer.groups=3: expected a mapping | null, found int"],
        ),
        (
            [
                "optimizer={_target_: torch.optim.LBFGS, groups: {bias: {lr: 1}}}",
                "~optimizer.fused",
            ],
            ["optimizer: LBFGS doesn't support per-parameter options (parameter groups)"],
        ),
        (
            [
                "optimizer.groups.bias.lr=1",
                "scheduler={_target_: torch.optim.lr_scheduler.OneCycleLR, max_lr: 0.1, "
                "total_steps: 9999}",
            ],
            [
                "optimizer.groups.bias.lr=1.0 but scheduler.max_lr=0.1 is the rate of all groups: "
                "give a list with one for each, or set scheduler=one_cycle"
            ],
        ),
    ],
)
def test_a_mistake_in_groups(argv, expected):
    assert mistakes(*argv) == expected


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    "optimizer",
    [("optimizer=muon",), ("optimizer=adam", "optimizer.groups={head: {weight_decay: 0.1}}")],
)
def test_names_are_those_of_a_head_with_clusters(place, optimizer, tied):
    head = ("head=adaptive", "head.cutoffs=[50,200]", f"model.tie_weights={str(tied).lower()}")
    fitted = place.fit(*head, *optimizer, "optimizer.lr=0.01", "trainer.max_epochs=1")
    assert len(fitted.of("train/nll")) == 18
    cluster = "head.tombstones" if tied else "head.weights.2"
    check(compose([*place.settings, *head, f"optimizer.groups={{{cluster}: {{lr: 1}}}}"]))
    said = mistakes(*place.settings, *head, "optimizer.groups={head.weights.3: {lr: 1}}")
    assert said[0].startswith("optimizer.groups.head.weights.3: no parameter has such a name")


def test_rates_of_a_schedule_may_be_one_for_each_group():
    check(
        compose(
            [
                *("optimizer.groups.bias.lr=1", "optimizer.groups.embedding.lr=1"),
                "scheduler={_target_: torch.optim.lr_scheduler.OneCycleLR, max_lr: [1, 2, 3], "
                "total_steps: 9999}",
            ]
        )
    )
