"""What is found wrong before anything is trained: ranges, and what constructors refuse."""

import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from typing import Annotated, Any, get_args, get_origin

import lightning.pytorch as pl
import pytest

import lmkit
from lmkit.config.binding import bind
from lmkit.config.check import Root, check
from lmkit.config.compose import compose
from lmkit.config.dry_run import attempt
from lmkit.config.signatures import signature_keys
from lmkit.config.targets import BESIDE, SLOTS, slot_bases
from lmkit.config.trainer import complaints
from lmkit.errors import UserError

for each in pkgutil.walk_packages(lmkit.__path__, "lmkit."):
    if each.name not in (
        *("lmkit.__main__", "lmkit.cluster", "lmkit.export.harness"),
    ):  # which runs; whose packages are extras
        importlib.import_module(each.name)


def mistakes_of(*argv: str) -> list[str]:
    with pytest.raises(UserError) as error:
        check(compose(list(argv)))
    return [line.removeprefix("  ") for line in str(error.value).splitlines()[1:]]


def subclasses(base: type) -> Iterator[type]:
    for each in base.__subclasses__():
        yield each
        yield from subclasses(each)


def configurable() -> Iterator[tuple[str, type, tuple[str, ...]]]:
    """Every class of lmkit that a config can name, by its group, and what the code passes it."""
    yield "", Root, ()
    for group, (name, given) in BESIDE.items():
        module, _, cls = name.rpartition(".")
        yield group, getattr(importlib.import_module(module), cls), given
    for group, slot in SLOTS.items():
        for each in dict.fromkeys(subclasses(slot_bases(group)[0])):
            private = each.__name__.startswith("_") or inspect.isabstract(each)
            if each.__module__.startswith("lmkit.") and not private:
                yield group, each, slot.given


def numbers(hint: Any) -> Iterator[Any]:
    """The arms of an annotation that are numbers, with their ranges."""
    if hint in (int, float):
        yield hint
    elif get_origin(hint) is Annotated:
        yield from [hint] if get_args(hint)[0] in (int, float) else []
    else:
        for arm in get_args(hint):
            yield from numbers(arm)


NUMBERS = [
    (f"{group}.{cls.__name__}.{name}", arm)
    for group, cls, given in configurable()
    for name, key in signature_keys(cls).items()
    if name not in given
    for arm in numbers(key.hint)
]
# These say in their constructors what each number must be, and why.
BY_CONSTRUCTOR = re.compile(r"tokenizer\.\w+\.(min_frequency|vocabulary_size)|data\.Csv\.column")


@pytest.mark.parametrize(("key", "hint"), NUMBERS, ids=[key for key, _ in NUMBERS])
def test_every_number_of_lmkits_own_classes_has_a_range(key, hint):
    assert get_origin(hint) is Annotated or BY_CONSTRUCTOR.match(key), key


def test_the_classes_are_those_that_there_are():
    found = {key.split(".")[1] for key, _ in NUMBERS}
    assert found >= {"Root", "DataModule", "LSTM", "Window", "FullSoftmax", "Checkpoint", "Samples"}
    assert found >= {"WarmupCosine", "Watchdog", "Files", "MemoryProbe", "Mixture", "ByteLevelBPE"}


@pytest.mark.parametrize("tokenizer", ["bpe", "characters", "word"])
def test_tokenizers_say_why_a_number_is_none(tokenizer):
    found = mistakes_of(f"tokenizer={tokenizer}", "tokenizer.vocabulary_size=-1")
    assert re.match(r"tokenizer.vocabulary_size=-1: must be at least \d+ \(", found[0])
    found = mistakes_of(f"tokenizer={tokenizer}", "tokenizer.min_frequency=0")
    assert found[0].startswith("tokenizer.min_frequency=0: must be at least 1 (")


@pytest.mark.parametrize(
    ("argument", "must"),
    [
        ("seed=-1", "at least 0 and below 4294967296"),
        ("seed=4294967296", "at least 0 and below 4294967296"),
        ("threads=0", "at least 1"),
        ("model.hidden_size=-3", "at least 1"),
        ("model.embedding_size=0", "at least 1"),
        ("model.num_layers=0", "at least 1"),
        ("model.dropout=1.5", "at least 0 and below 1"),
        ("model.dropout=1", "at least 0 and below 1"),
        ("model.dropout=nan", "a finite number"),
        ("model.output_dropout=-0.1", "at least 0 and below 1"),
        ("model.init_range=0", "above 0"),
        ("model.forget_gate_bias=inf", "a finite number"),
        ("head.chunk_size=-1", "at least 1"),
        ("data.bptt=0", "at least 1"),
        ("data.eval_batch_size=0", "at least 1"),
        ("optimizer.lr=inf", "a finite number"),
        ("optimizer.lr=nan", "a finite number"),
        ("callbacks.samples.num_tokens=0", "at least 1"),
        ("callbacks.samples.seed=-1", "at least 0 and below 4294967296"),
        ("callbacks.checkpoint.keep=1", "at least 2"),
        ("callbacks.watchdog.seconds=0", "above 0"),
        ("scheduler.warmup_steps=-5", "at least 0"),
        ("scheduler.min_ratio=2", "at least 0 and at most 1"),
    ],
)
def test_a_number_out_of_its_range(argument, must):
    found = mistakes_of("scheduler=cosine", argument)
    key, _, value = argument.partition("=")
    assert re.fullmatch(rf"{re.escape(key)}={value}(\.0)?: must be {must}", found[0])


def test_hundreds_of_threads_are_too_many(monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    assert mistakes_of("threads=33") == ["threads=33: this machine has 2 processors"]
    assert check(compose(["threads=32"]))[0]["threads"] == 32


def test_what_a_library_refuses_is_told_of_each_key_of_every_object():
    found = mistakes_of(
        "optimizer.lr=-1",
        "optimizer.weight_decay=-1",
        "optimizer.eps=x",
        "scheduler=step",
        "scheduler.step_size=0",
        "trainer.profiler=foo",
        "trainer.gradient_clip_algorithm=foo",
        "trainer.limit_train_batches=1.5",
        "callbacks=[default,early_stopping]",
        "callbacks.early_stopping.mode=foo",
        "logger=wandb",
        "logger.wandb.mode=foo",
    )
    keys = [mistake.partition("=")[0].partition(":")[0] for mistake in found]
    assert sorted(keys) == [
        "callbacks.early_stopping.mode",
        "logger.wandb.mode",
        "optimizer.eps",
        "optimizer.lr",
        "optimizer.weight_decay",
        "scheduler.step_size",
        "trainer.gradient_clip_algorithm",
        "trainer.limit_train_batches",
        "trainer.profiler",
    ]
    assert "optimizer.weight_decay=-1.0: Invalid weight_decay value: -1.0" in found


@pytest.mark.parametrize(
    ("argv", "mistake"),
    [
        (
            ["model.hidden_size=1000000"],
            r"model: its parameters take [\d,]+ GiB, this machine has \d+; lower model.hidden_size "
            "or model.embedding_size",
        ),
        (
            ["optimizer={_target_: torch.optim.SGD, lr: 0.1, nesterov: true}", "~optimizer.fused"],
            "optimizer.nesterov=True: Nesterov momentum requires a momentum and zero dampening",
        ),
        (
            ["optimizer={_target_: torch.optim.SparseAdam}", "~optimizer.fused"],
            "optimizer: SparseAdam does not support dense gradients, please consider Adam instead",
        ),
        (
            ["optimizer={_target_: torch.optim.Muon}", "~optimizer.fused"],
            r"optimizer: Muon only supports 2D parameters .*",
        ),
        (
            [
                "scheduler={_target_: torch.optim.lr_scheduler.SequentialLR, milestones: [3], "
                "schedulers: [{_target_: torch.optim.lr_scheduler.LinearLR}, "
                "{_target_: torch.optim.lr_scheduler.ExponentialLR, gamma: -0.9}]}"
            ],
            "scheduler.schedulers.1.gamma=-0.9: must be at least 0",
        ),
        (
            ["scheduler={_target_: torch.optim.lr_scheduler.StepLR, step_size: 9, gamma: -1}"],
            "scheduler.gamma=-1.0: must be at least 0",
        ),
        (  # max_epochs has its default in the place of the mistake, and would contradict max_steps
            ["trainer.max_epochs=0.5"],
            r"trainer.max_epochs=0.5: expected int \| null, found float",
        ),
        (
            ["trainer.max_time={hours: nan}"],
            r"trainer.max_time=\{'hours': nan\}: hours must be int",
        ),
        (
            ["optimizer={_target_: torch.optim.ASGD}"],
            "optimizer.fused is not a key of torch.optim.ASGD; it is one of optimizer=adam, "
            "optimizer=adamw, optimizer=muon, optimizer=sgd; where an option of the group has set "
            "it, leave it out: ~optimizer.fused",
        ),
        (
            ["callbacks.bar._target_=lightning.pytorch.callbacks.RichProgressBar"],
            "callbacks.bar: RichProgressBar would draw over the bar that a run has; leave it out",
        ),
        (
            ["callbacks.mine._target_=lightning.pytorch.callbacks.ModelCheckpoint"],
            "callbacks.mine: ModelCheckpoint would write states within a step, .*; leave it out",
        ),
        (
            ["callbacks=early_stopping", "callbacks.early_stopping.patience=-1"],
            "callbacks.early_stopping.patience=-1: must be at least 0",
        ),
        (
            ["callbacks=early_stopping", "callbacks.early_stopping.mode=max"],
            "callbacks.early_stopping.mode=max but val/nll is the better the lower; set "
            "callbacks.early_stopping.mode=min",
        ),
        (
            ["scheduler=plateau", "scheduler.monitor=val/perplexity", "scheduler.mode=max"],
            "scheduler.mode=max but val/perplexity is the better the lower; set scheduler.mode=min",
        ),
        (["scheduler=step", "scheduler.step_size=0"], "scheduler.step_size=0: must be at least 1"),
        (  # the message names max_lr first, and without total_steps something else is refused
            [
                "scheduler={_target_: torch.optim.lr_scheduler.OneCycleLR, max_lr: [0.1, 0.2], "
                "total_steps: 9999}"
            ],
            "scheduler.max_lr: max_lr must have the same length as optimizer.param_groups.*",
        ),
        (  # without base_lr the class would ask for it
            ["scheduler={_target_: torch.optim.lr_scheduler.CyclicLR, base_lr: -1, max_lr: 0.1}"],
            "scheduler.base_lr=-1.0: must be at least 0",
        ),
        (
            [
                "optimizer=rmsprop",
                "scheduler={_target_: torch.optim.lr_scheduler.CyclicLR, base_lr: 0.1, max_lr: 1}",
            ],
            "scheduler: KeyError: 'momentum_buffer'",
        ),
        (["run_id=a/b"], "run_id=a/b: expected letters, digits .*"),
        (
            ["+callbacks.x._target_=lightning.pytorch.callbacks.BatchSizeFinder"],
            "callbacks.x: BatchSizeFinder would try batches .*; set data.batch_size; leave it out",
        ),
        (
            ["+callbacks.x._target_=lightning.pytorch.callbacks.BackboneFinetuning"],
            "callbacks.x: BackboneFinetuning asks for a module `backbone`, .*; leave it out",
        ),
    ],
)
def test_what_is_refused_by_what_is_built(argv, mistake):
    (found,) = mistakes_of(*argv)
    assert re.fullmatch(mistake, found)


def test_what_a_callback_needs_of_the_machine_is_told_before_a_run_begins(monkeypatch):
    module = importlib.import_module("lightning.pytorch.callbacks.device_stats_monitor")
    key = "+callbacks.stats={_target_: lightning.pytorch.callbacks.DeviceStatsMonitor}"
    monkeypatch.setattr(module, "_PSUTIL_AVAILABLE", "")
    (found,) = mistakes_of(key)
    said = "callbacks.stats: `DeviceStatsMonitor` cannot log CPU stats as `psutil` is not installed"
    assert found.startswith(said)
    check(compose(["+callbacks.stats={_target_: lightning.pytorch.callbacks.DeviceStatsMonitor, "
                   "cpu_stats: false}"]))  # fmt: skip
    monkeypatch.setattr(module, "_PSUTIL_AVAILABLE", "yes")
    check(compose([key]))


def test_a_mistake_in_a_key_that_is_left_out_is_not_told_again():
    calls = []

    def make(node: dict[str, Any]) -> None:
        calls.append(sorted(node))
        raise ValueError("never")

    mistakes = ["optimizer.lr=x: expected float, found text"]
    node = {"_target_": "torch.optim.Adam", "lr": "x", "eps": 1.0}
    assert attempt("optimizer", node, make, mistakes) is None
    assert len(mistakes) == 1
    assert all("lr" not in call for call in calls)


MONITORS = "there are: val/nll, val/perplexity"


@pytest.mark.parametrize(
    ("argv", "mistake"),
    [
        (
            ["callbacks=early_stopping", "callbacks.early_stopping.monitor=val_loss"],
            f"callbacks.early_stopping.monitor=val_loss: never logged; {MONITORS}, "
            "val/bits_per_byte",
        ),
        (
            ["callbacks.checkpoint.monitor=val/bits_per_byte", "tokenizer=word"],
            f"callbacks.checkpoint.monitor=val/bits_per_byte: never logged; {MONITORS}",
        ),
        (
            ["callbacks.checkpoint.monitor=val/bits_per_byte", "trainer.limit_val_batches=0.5"],
            f"callbacks.checkpoint.monitor=val/bits_per_byte: never logged; {MONITORS}",
        ),
        (
            ["scheduler=plateau", "scheduler.monitor=train/nll"],
            f"scheduler.monitor=train/nll: never logged; {MONITORS}, val/bits_per_byte",
        ),
    ],
)
def test_a_monitor_that_never_comes(argv, mistake):
    assert mistakes_of(*argv) == [mistake]


def test_keys_that_lightning_would_take_from_the_environment_are_refused(monkeypatch):
    monkeypatch.setenv("PL_TRAINER_LIMIT_TRAIN_BATCHES", "3")
    assert mistakes_of() == [
        "the environment variable PL_TRAINER_LIMIT_TRAIN_BATCHES would set "
        "trainer.limit_train_batches unseen: unset it, and set trainer.limit_train_batches"
    ]


def test_a_rate_of_0_is_said(caplog):
    cycle = "torch.optim.lr_scheduler.OneCycleLR"
    check(
        compose(
            [f"scheduler={{_target_: {cycle}, max_lr: 0.1, total_steps: 9999}}", "optimizer.lr=0"]
        )
    )
    assert not caplog.messages
    check(compose(["optimizer.lr=0"]))
    assert caplog.messages == ["optimizer.lr=0: nothing is learnt"]


def test_a_size_of_nothing_is_said(caplog):
    for argv in (["model.hidden_size=300"], ["model.num_layers=1"], ["model=window"]):
        check(compose(argv))
    check(compose(["model.num_layers=1", "model.hidden_size=300", "model.tie_weights=false"]))
    check(compose(["model.num_layers=1", "model=lstmp", "model.hidden_size=300"]))
    assert not caplog.messages
    check(compose(["model.num_layers=1", "model.hidden_size=300"]))
    check(compose(["model.num_layers=1", "model=lstmp", "model.projection_size=100"]))
    assert caplog.messages == [
        f"model.{size} is the size of nothing: with model.tie_weights=true the only layer has "
        "model.embedding_size=200 units"
        for size in ("hidden_size=300", "projection_size=100")
    ]


def test_monitors_that_come(monkeypatch):
    argv = ["callbacks=[default,early_stopping]", "scheduler=plateau"]
    for monitor in ("val/nll", "val/perplexity", "val/bits_per_byte"):
        keys = (f"{key}.monitor={monitor}" for key in ("scheduler", "callbacks.early_stopping"))
        check(compose([*argv, *keys]))
    lenient = ["callbacks.early_stopping.monitor=x", "callbacks.early_stopping.strict=false"]
    check(compose([*argv, *lenient]))


def test_what_a_library_raises_at_work_is_a_sentence():
    trainer = pl.Trainer(max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False)
    with (
        pytest.raises(UserError, match=r"^lightning\.pytorch\.[\w.]+ refuses the config: .+"),
        complaints(),
    ):
        trainer.fit(pl.LightningModule())
    with pytest.raises(ZeroDivisionError), complaints():  # this project's own stay what they are
        1 / 0  # noqa: B018


def test_bind_keeps_a_range_inside_a_mapping():
    def command(*, weights: dict[str, Annotated[float, "any"]]) -> None: ...

    mistakes: list[str] = []
    bind("", {"weights": {"a": float("nan")}}, {command: ()}, mistakes)
    assert mistakes == ["weights={'a': nan}: a must be a finite number"]
