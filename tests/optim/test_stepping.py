"""Classes of torch, Lightning and torchmetrics in a config, with the arguments they document."""

import inspect
import math
from collections.abc import Callable
from typing import Any, get_args

import lightning.pytorch as pl
import pytest
import torch
import torchmetrics
from lightning.pytorch import callbacks, loggers, profilers
from lightning.pytorch.loggers.logger import DummyLogger
from torch import optim
from torch.optim import lr_scheduler
from torch.optim.lr_scheduler import LRScheduler

from lmkit.config.binding import bind_node
from lmkit.config.build import build
from lmkit.config.signatures import signature_keys
from lmkit.config.targets import slot_bases
from lmkit.errors import UserError
from lmkit.optim import (
    HoldThenDecay,
    Stepping,
    WarmupCosine,
    WarmupLinear,
    check_length,
    documented,
    has_end,
)


def classes(module: Any, base: type) -> list[type]:
    found = [getattr(module, name) for name in getattr(module, "__all__", dir(module))]
    return [each for each in found if inspect.isclass(each) and issubclass(each, base)]


OPTIMIZERS = [each for each in classes(optim, optim.Optimizer) if each is not optim.Optimizer]
SCHEDULERS = [each for each in classes(lr_scheduler, LRScheduler) if each is not LRScheduler]
CALLBACKS = classes(callbacks, pl.Callback)
LOGGERS = classes(loggers, loggers.Logger)
METRICS = classes(torchmetrics, torchmetrics.Metric)
STACK = [*OPTIMIZERS, *SCHEDULERS, *CALLBACKS, *LOGGERS, *METRICS, *classes(profilers, object)]


@pytest.mark.parametrize("cls", STACK, ids=lambda cls: cls.__name__)
def test_every_annotation_can_be_read(cls):
    """None is a text, nor holds one: what nothing equals would refuse whatever is given."""

    def texts(hint: Any) -> list[Any]:
        inner = [text for arm in get_args(hint) for text in texts(arm)]
        return [hint] if isinstance(hint, str) else inner

    for name, key in signature_keys(cls).items():
        if "Literal" not in repr(key.hint):
            assert texts(key.hint) == [], (name, key.hint)


def test_the_classes_are_those_that_there_are():
    assert len(OPTIMIZERS) >= 13
    assert len(SCHEDULERS) >= 15
    assert len(CALLBACKS) >= 20
    assert len(LOGGERS) >= 5
    assert len(METRICS) >= 80


def plain(value: Any) -> Any:
    """A default as a config writes it."""
    return list(value) if isinstance(value, tuple) else value


# What has no default, or shows what the documentation offers beside it.
DOCUMENTED: dict[type, dict[str, Any]] = {
    optim.SGD: {"lr": 1, "momentum": 0.9, "nesterov": True, "weight_decay": "1e-4"},
    optim.Adam: {"betas": [0.9, 0.98], "amsgrad": True},
    optim.Adafactor: {"eps": [None, 1e-3], "beta2_decay": -0.8},
    optim.Rprop: {"etas": [0.5, 1.2], "step_sizes": [1e-6, 50]},
    optim.LBFGS: {"line_search_fn": "strong_wolfe", "max_eval": 5},
    lr_scheduler.MultiStepLR: {"milestones": [4, 5], "gamma": 0.5},
    lr_scheduler.CyclicLR: {
        **{"base_lr": 0.001, "max_lr": [0.01], "mode": "triangular2", "cycle_momentum": False},
        **{"step_size_up": 5, "scale_mode": "iterations"},
    },
    lr_scheduler.OneCycleLR: {"max_lr": 0.01, "total_steps": 64, "cycle_momentum": False},
    lr_scheduler.StepLR: {"step_size": 3},
    lr_scheduler.ExponentialLR: {"gamma": 0.9},
    lr_scheduler.CosineAnnealingLR: {"T_max": 10, "eta_min": 1e-5},
    lr_scheduler.CosineAnnealingWarmRestarts: {"T_0": 2, "T_mult": 2},
    lr_scheduler.ReduceLROnPlateau: {"mode": "max", "min_lr": [1e-5], "threshold_mode": "abs"},
    lr_scheduler.SequentialLR: {
        "schedulers": [
            {"_target_": "torch.optim.lr_scheduler.LinearLR", "total_iters": 2},
            {"_target_": "torch.optim.lr_scheduler.ExponentialLR", "gamma": 0.5},
        ],
        "milestones": [2],
    },
    lr_scheduler.ChainedScheduler: {
        "schedulers": [
            {"_target_": "torch.optim.lr_scheduler.ConstantLR", "factor": 0.1},
            {"_target_": "torch.optim.lr_scheduler.ExponentialLR", "gamma": 0.5},
        ],
    },
    callbacks.EarlyStopping: {"monitor": "val/nll", "stopping_threshold": 3},
    callbacks.ModelCheckpoint: {"train_time_interval": {"minutes": 30}, "save_last": "link"},
    callbacks.Timer: {"duration": "00:12:00:00"},
    callbacks.GradientAccumulationScheduler: {"scheduling": {4: 2}},
    callbacks.StochasticWeightAveraging: {"swa_lrs": [1e-2], "device": "cpu"},
    callbacks.BasePredictionWriter: {"write_interval": "batch_and_epoch"},
    callbacks.OnExceptionCheckpoint: {"dirpath": "here"},
    callbacks.RichProgressBar: {"theme": {"progress_bar": "green"}},
    callbacks.ModelPruning: {"pruning_fn": "l1_unstructured", "amount": 0.5},
    callbacks.BackboneFinetuning: {"unfreeze_backbone_at_epoch": 3},
    callbacks.LearningRateMonitor: {"logging_interval": "step"},
    loggers.TensorBoardLogger: {"name": "a", "flush_secs": 30, "comment": "b"},
    loggers.CSVLogger: {"prefix": "a", "flush_logs_every_n_steps": 5},
    loggers.WandbLogger: {"entity": "a", "tags": ["b"], "group": "c", "log_model": "all"},
}
# A config can write no function.
FUNCTIONS = {
    lr_scheduler.LambdaLR: "lr_lambda",
    lr_scheduler.MultiplicativeLR: "lr_lambda",
    callbacks.ThroughputMonitor: "batch_size_fn",
}


def bound(cls: type, values: dict[str, Any], slot: str) -> tuple[dict[str, Any], list[str]]:
    mistakes: list[str] = []
    node = {"_target_": f"{cls.__module__}.{cls.__qualname__}", **values}
    given = {"optimizer": ("params",), "scheduler": ("optimizer", "num_steps")}.get(slot, ())
    return bind_node(slot, node, slot_bases(slot), mistakes, given), mistakes


def every() -> list[tuple[type, str]]:
    groups = {"optimizer": OPTIMIZERS, "scheduler": SCHEDULERS, "callbacks": CALLBACKS}
    groups["logger"] = [each for each in LOGGERS if each is not DummyLogger]
    return [(each, slot) for slot, found in groups.items() for each in found]


@pytest.mark.parametrize(("cls", "slot"), every(), ids=lambda each: getattr(each, "__name__", each))
def test_every_class_takes_its_documented_arguments(cls, slot):
    """Those with a default as it stands, the others by an example."""
    given = {"params", "optimizer", "save_dir"}
    defaults = {
        name: plain(parameter.default)
        for name, parameter in inspect.signature(cls).parameters.items()
        if isinstance(parameter.default, int | float | str | tuple | None) and name not in given
    }
    no_value = {name: v for name, v in defaults.items() if isinstance(v, float) and math.isinf(v)}
    values = {name: v for name, v in defaults.items() if name not in no_value}
    _, mistakes = bound(cls, values | DOCUMENTED.get(cls, {}), slot)
    unnamed = f"{slot}.save_dir is required"
    mistakes = [mistake for mistake in mistakes if not mistake.startswith(unnamed)]
    if function := FUNCTIONS.get(cls):
        assert [m.partition(" by ")[0] for m in mistakes] == [f"{slot}.{function} is required"]
    else:
        assert mistakes == []


def parameters() -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(torch.ones(2, 2))]


@pytest.mark.parametrize("cls", OPTIMIZERS, ids=lambda cls: cls.__name__)
def test_every_optimiser_is_made(cls):
    node, _ = bound(cls, DOCUMENTED.get(cls, {}), "optimizer")
    assert type(build("optimizer", node, params=parameters())) is cls


@pytest.mark.parametrize(
    "cls", [each for each in SCHEDULERS if each not in FUNCTIONS], ids=lambda cls: cls.__name__
)
def test_every_schedule_is_made_and_has_the_rates_of_torch(cls):
    node, mistakes = bound(cls, DOCUMENTED.get(cls, {}), "scheduler")
    assert mistakes == []
    rates = []
    for make in (lambda o: build("scheduler", node, optimizer=o), by_hand(cls)):
        optimizer = optim.SGD(parameters(), lr=0.1, momentum=0.9)
        scheduler = make(optimizer)
        step = (1.0,) if cls is lr_scheduler.ReduceLROnPlateau else ()
        rates.append([])
        for _ in range(20):
            optimizer.step()
            scheduler.step(*step)
            rates[-1].append(optimizer.param_groups[0]["lr"])
    assert rates[0] == rates[1]


def by_hand(cls: type) -> Callable[[optim.Optimizer], Any]:
    def make(optimizer: optim.Optimizer) -> Any:
        values = dict(DOCUMENTED.get(cls, {}))
        if parts := values.pop("schedulers", None):
            made = [
                getattr(lr_scheduler, part["_target_"].rpartition(".")[2])(
                    optimizer, **{key: value for key, value in part.items() if key != "_target_"}
                )
                for part in parts
            ]
            values["schedulers"] = made
        if cls is lr_scheduler.ChainedScheduler:
            return cls(values["schedulers"], optimizer=optimizer)
        return cls(optimizer, **values)

    return make


def schedule(cls: type) -> LRScheduler:
    optimizer = optim.SGD(parameters(), lr=0.1, momentum=0.9)
    made: LRScheduler = by_hand(cls)(optimizer)
    return made


BY_UPDATE = (lr_scheduler.OneCycleLR, lr_scheduler.CyclicLR)


@pytest.mark.parametrize(
    "cls", [each for each in SCHEDULERS if each not in FUNCTIONS], ids=lambda cls: cls.__name__
)
def test_a_schedule_steps_as_torch_documents_it_or_as_it_is_told(cls):
    made = schedule(cls)
    usual = "step" if cls in BY_UPDATE else "epoch"
    assert documented(made) == usual
    assert Stepping("epoch").settings(made)["interval"] == "epoch"
    if cls is not lr_scheduler.ReduceLROnPlateau:
        assert Stepping("step").settings(made) == {"scheduler": made, "interval": "step"}


def test_lmkits_own_step_by_update_and_mixed_ones_must_be_told():
    optimizer = optim.SGD(parameters(), lr=0.1)
    for cls in (WarmupCosine, WarmupLinear):
        assert documented(cls(optimizer, 10)) == "step"
    both = [WarmupCosine(optimizer, 10), lr_scheduler.StepLR(optimizer, 3)]
    mixed = lr_scheduler.SequentialLR(optimizer, both, [2])
    with pytest.raises(UserError, match=r"set scheduler\.interval=step or scheduler\.interval="):
        Stepping().settings(mixed)
    assert Stepping("step").settings(mixed)["interval"] == "step"


def test_a_plateau_steps_after_a_validation_and_alone_has_a_monitor():
    plateau = schedule(lr_scheduler.ReduceLROnPlateau)
    assert Stepping().settings(plateau)["monitor"] == "val/nll"
    assert Stepping(monitor="val/perplexity").settings(plateau)["monitor"] == "val/perplexity"
    with pytest.raises(
        UserError, match=r"^scheduler\.interval=step: ReduceLROnPlateau steps after"
    ):
        Stepping("step").settings(plateau)
    with pytest.raises(UserError, match=r"^scheduler\.monitor=val/nll: only ReduceLROnPlateau"):
        Stepping(monitor="val/nll").settings(schedule(lr_scheduler.StepLR))


def test_a_cycle_that_ends_before_the_training():
    one = schedule(lr_scheduler.OneCycleLR)
    check_length(one, 64)
    with pytest.raises(UserError, match=r"^scheduler ends after 64 steps but .* has 65; set "):
        check_length(one, 65)
    with pytest.raises(UserError, match=r"training has more; set scheduler\.total_steps=\.\.\.$"):
        check_length(one, math.inf)


@pytest.mark.filterwarnings("ignore")  # that the optimiser has made no step
@pytest.mark.parametrize("steps", range(1, 14))
@pytest.mark.parametrize("kind", ["chained", "first", "middle", "last"])
def test_a_cycle_within_another_schedule_ends_too(kind, steps):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1, momentum=0.9)
    constant = [lr_scheduler.ConstantLR(optimizer, 1.0) for _ in range(3)]
    cycle = lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=3)
    if kind == "chained":
        whole = lr_scheduler.ChainedScheduler([constant[0], cycle])
    else:
        parts = constant
        parts[["first", "middle", "last"].index(kind)] = cycle
        whole = lr_scheduler.SequentialLR(optimizer, parts, milestones=[5, 9])

    def fails(do: Callable[[], object], error: type[Exception]) -> bool:
        try:
            do()
        except error:
            return True
        return False

    late = [fails(whole.step, ValueError) for _ in range(steps)]
    assert has_end(whole)
    assert fails(lambda: check_length(whole, steps), UserError) == any(late)


def test_a_time_and_a_record_become_objects():
    node, mistakes = bound(
        callbacks.ModelCheckpoint, {"train_time_interval": {"hours": 2}}, "callbacks"
    )
    assert mistakes == []
    made = build("callbacks", node)
    assert made._train_time_interval.total_seconds() == 7200
    for wrong in (3, {"years": 1}, {"hours": "many"}):
        _, mistakes = bound(callbacks.ModelCheckpoint, {"train_time_interval": wrong}, "callbacks")
        assert "a mapping, as {minutes: 30} | null" in mistakes[0]
    node, _ = bound(callbacks.RichProgressBar, {"theme": {"progress_bar": "green"}}, "callbacks")
    assert build("callbacks", node).theme.progress_bar == "green"


def test_a_list_of_objects_holds_those_of_its_kind_alone():
    values = {"milestones": [2], "schedulers": [{"_target_": "torch.optim.SGD"}]}
    _, mistakes = bound(lr_scheduler.SequentialLR, values, "scheduler")
    assert mistakes == [
        "scheduler.schedulers.0._target_: torch.optim.SGD is not a "
        "torch.optim.lr_scheduler.LRScheduler"
    ]
    node = {"_target_": "torch.optim.lr_scheduler.SequentialLR", **values}
    optimizer = optim.SGD(parameters())
    with pytest.raises(UserError, match="is not a torch"):
        build("scheduler", node, optimizer=optimizer)


@pytest.mark.parametrize(("hold", "decay"), [(5, 2.0), (7, 1.2), (1, 1.15)])
def test_a_rate_is_held_and_then_falls_after_each_epoch(hold, decay):
    """As `lr = lr / decay` after the end of every epoch from `hold` on."""
    optimizer = optim.SGD([torch.nn.Parameter(torch.zeros(2))], lr=20.0)
    scheduler = HoldThenDecay(optimizer, hold=hold, gamma=1 / decay)
    assert documented(scheduler) == "epoch"
    assert not has_end(scheduler)
    expected = 20.0
    for epoch in range(1, 14):
        assert optimizer.param_groups[0]["lr"] == pytest.approx(expected)
        optimizer.step()
        scheduler.step()
        if epoch >= hold:
            expected /= decay
