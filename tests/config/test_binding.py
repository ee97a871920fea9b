"""Values against annotations, keys against signatures, and building after the check."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from lmkit.config.binding import bind, bind_node
from lmkit.config.build import build
from lmkit.config.check import check
from lmkit.config.compose import compose
from lmkit.config.values import MisfitError, fit
from lmkit.errors import UserError


@pytest.mark.parametrize(
    ("value", "hint", "expected"),
    [
        (1, int, 1),
        (1, float, 1.0),
        ("1e-3", float, 0.001),
        (1e3, int, 1000),
        ("1e3", int, 1000),
        (7, str, "7"),
        (True, bool, True),
        (None, int | None, None),
        (0.5, int | float | None, 0.5),
        (1, int | float | None, 1),
        (1.0, int | float | None, 1.0),
        ("auto", list[int] | str | int, "auto"),
        ([0, 1], list[int] | str | int, [0, 1]),
        ([0.9, "0.99"], tuple[float, float], [0.9, 0.99]),
        ([1, 2, 3], tuple[int, ...], [1, 2, 3]),
        (["a"], Sequence[str], ["a"]),
        ({"hours": "1"}, dict[str, int], {"hours": 1}),
        ("min", Literal["min", "max"], "min"),
        ("a b", Path, "a b"),
        (0.1, float | torch.Tensor, 0.1),
        ({"x": [1]}, Any, {"x": [1]}),
    ],
)
def test_a_value_becomes_what_the_user_means(value, hint, expected):
    found = fit(value, hint)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("value", "hint", "wanted"),
    [
        (True, int, "int"),
        (True, float, "float"),
        (1, bool, "bool"),
        ("true", bool, "bool"),
        (0.5, int, "int"),
        ("nan", int, "int"),
        ("inf", int | None, "int | null"),
        ("many", float, "float"),
        (True, str, "str"),
        (None, float, "float"),
        ([1], int, "int"),
        ("x", list[int] | int, "a list of int | int"),
        ([0.9], tuple[float, float], "must have 2 values, found 1"),
        (["a"], list[int], "int"),
        (1, Literal[True, "warn"], "True | warn"),
        ("mean", Literal["min", "max"] | None, "min | max | null"),
        (3, torch.Tensor | None, "null"),
    ],
)
def test_a_misfit_says_what_is_wanted(value, hint, wanted):
    with pytest.raises(MisfitError) as error:
        fit(value, hint)
    assert str(error.value) == wanted


def node(**keys: Any) -> dict[str, Any]:
    return {"_target_": "torch.optim.Adam", **keys}


def mistakes_of(found: dict[str, Any]) -> list[str]:
    mistakes: list[str] = []
    bind_node("optimizer", found, (torch.optim.Optimizer,), mistakes, ("params",))
    return mistakes


@pytest.mark.parametrize(
    ("keys", "mistake"),
    [
        (
            {"beta": [0.9, 0.99]},
            "optimizer.beta is not a key of torch.optim.Adam; did you mean optimizer.betas?",
        ),
        ({"lr": "fast"}, "optimizer.lr=fast: expected float, found text"),
        ({"betas": 0.9}, "optimizer.betas=0.9: expected a list of float, found float"),
        ({"lr": None}, "optimizer.lr=null: expected float, found null"),
        ({"params": []}, "optimizer.params is set by lmkit itself and cannot be configured"),
        ({"_args_": [1]}, "optimizer._args_ is not supported; write the arguments as keys"),
        ({"_partial_": True}, "optimizer._partial_ is not supported; write the arguments as keys"),
        (
            {"amsgrad": {"_target_": "os.system", "command": "true"}},
            "optimizer.amsgrad: expected bool, found an object with a _target_",
        ),
        (
            {"lr": {"_target_": "os.system", "command": "true"}},
            "optimizer.lr._target_: os.system is not allowed: a class must come from lmkit, "
            "lightning, torch, torchmetrics",
        ),
    ],
)
def test_exact_message(keys, mistake):
    assert mistakes_of(node(**keys)) == [mistake]


def test_all_mistakes_of_a_node_are_found_at_once():
    assert len(mistakes_of(node(lr="x", eps="y", betass=1, fused=3))) == 4


def test_a_node_needs_a_target():
    assert mistakes_of({"lr": 1}) == [
        "optimizer: expected an object with a _target_, found a mapping"
    ]


class Sized:
    @staticmethod
    def mistakes(config: Mapping[str, Any], at: str) -> list[str]:
        size, least = config["size"], config["least"]
        return [f"{at}.size={size} but {at}.least={least}: raise it"] if size < least else []

    def __init__(self, given: object, *, size: int, least: int = 3) -> None: ...


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"size": 4}, []),
        ({"size": 2}, ["a.b.size=2 but a.b.least=3: raise it"]),
        (
            {"size": "2", "lest": 1},
            [
                "a.b.lest is not a key of Sized; did you mean a.b.least?",
                "a.b.size=2 but a.b.least=3: raise it",
            ],
        ),
        ({"size": "two"}, ["a.b.size=two: expected int, found text"]),
        ({"size": "???"}, ["a.b.size is required by Sized; set a.b.size=..."]),
        ({}, ["a.b.size is required by Sized; set a.b.size=..."]),
    ],
)
def test_a_class_checks_its_values_together_once_they_fit(values, expected):
    mistakes: list[str] = []
    bind("a.b", values, {Sized: ("given",)}, mistakes, "Sized")
    assert mistakes == expected


def test_build_calls_the_class_with_what_it_takes():
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = build("optimizer", node(lr=0.5), params=[parameter], num_steps=3)
    assert optimizer.param_groups[0]["lr"] == 0.5


def test_build_makes_nested_objects_of_the_annotated_kind_only():
    trainer = {"_target_": "lightning.pytorch.Trainer", "accelerator": "cpu", "logger": False}
    profiler = {"_target_": "lightning.pytorch.profilers.SimpleProfiler", "filename": "times"}
    made = build("trainer", {**trainer, "profiler": profiler})
    assert made.profiler.filename == "times"
    with pytest.raises(UserError, match=r"^torch\.nn\.Linear is not a lightning\."):
        build("trainer", {**trainer, "profiler": {"_target_": "torch.nn.Linear"}})


@pytest.mark.parametrize(
    "value",
    [
        [{"_target_": "torch.optim.SGD"}],
        {"x": {"_target_": "torch.optim.SGD"}},
        {"x": [1, {"y": {"_target_": "os.system"}}]},
    ],
)
def test_no_object_hides_in_a_list_or_mapping_of_an_untyped_parameter(value):
    class Untyped(torch.optim.SGD):
        def __init__(self, params, more: Any = None, table: dict[str, Any] | None = None) -> None:
            raise AssertionError("made")

    for name in ("more", "table"):
        mistakes: list[str] = []
        bind("optimizer", {name: value}, {Untyped: ("params",)}, mistakes)
        assert mistakes[0].startswith(f"optimizer.{name}: expected ")
        assert mistakes[0].endswith(", found an object with a _target_ in it")
        with pytest.raises(UserError, match="expected a plain value, found a "):
            build("optimizer", node(weight_decay=value), params=[])


def test_build_does_not_trust_an_unchecked_node():
    with pytest.raises(UserError, match="not allowed"):
        build("optimizer", {"_target_": "os.system", "command": "true"})
    with pytest.raises(UserError, match="not allowed"):
        build("optimizer", node(lr={"_target_": "os.system", "command": "true"}), params=[])


def test_secrets_are_read_only_when_built(monkeypatch):
    values = {"_target_": "lmkit.tokenizer.Pretrained", "path": "${oc.env:LMKIT_TEST_PATH}"}
    mistakes: list[str] = []
    bound = bind_node("tokenizer", values, (), mistakes)
    assert mistakes == [
        "tokenizer.path=${oc.env:LMKIT_TEST_PATH}: the environment variable LMKIT_TEST_PATH is "
        "not set"
    ]
    monkeypatch.setenv("LMKIT_TEST_PATH", "/no/such/place")
    mistakes.clear()
    bound = bind_node("tokenizer", values, (), mistakes)
    assert not mistakes
    assert bound == values
    with pytest.raises(UserError, match="/no/such/place"):
        build("tokenizer", bound)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("lr=0.1", "lr is not a key; did you mean optimizer.lr=0.1?"),
        ("hiden_size=650", "hiden_size is not a key; did you mean model.hidden_size=650?"),
        ("max_epochs=3", "max_epochs is not a key; did you mean trainer.max_epochs=3?"),
        ("epochs=3", "epochs is not a key; did you mean trainer.max_epochs=3?"),
        ("tie_weights=false", "tie_weights is not a key; did you mean model.tie_weights=false?"),
        ("modle=1", "modle is not a key; did you mean model?"),
        (
            "model.lr=3",
            "model.lr is not a key of lmkit.model.LSTM; did you mean optimizer.lr=3?",
        ),
        (
            "model.nonlinearity=relu",
            "model.nonlinearity is not a key of lmkit.model.LSTM; it is one of model=elman",
        ),
        (
            "data.path=texts",
            "data.path is not a key of lmkit.corpus.Pydocs; it is one of data=csv, data=datatrove, "
            "data=enwik8, data=files, data=jsonl, data=parquet, data=ptb, data=shakespeare, "
            "data=store, data=tsv, data=wikitext",
        ),
        (
            "eps=1",
            "eps is not a key; did you mean optimizer.eps=1 or scheduler.eps=1?",
        ),
    ],
)
def test_a_key_without_its_group_or_in_the_wrong_one_is_found(argument, message):
    with pytest.raises(UserError) as error:
        check(compose(["scheduler=plateau", argument]))
    assert str(error.value) == f"1 mistake:\n  {message}"


def test_a_forgotten_m_is_named_once():
    with pytest.raises(UserError) as error:
        check(compose(["optimizer.lr=1e-3,1e-2", "model=lstm,gru"]))
    assert str(error.value) == (
        "1 mistake:\n  optimizer.lr=1e-3,1e-2 and model=lstm,gru: a run takes one value; for a run "
        "of each combination add -m (lmkit train -m ...) or take lmkit sweep; a list as one value "
        "is written [a,b]"
    )
