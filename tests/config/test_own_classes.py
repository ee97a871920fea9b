"""A class of the user's own, allowed by LMKIT_ALLOW, meets every check that lmkit's like does."""

import sys
from pathlib import Path

import pytest

from lmkit.cli import main
from lmkit.config.check import check
from lmkit.config.compose import compose
from lmkit.errors import UserError

OWN = """
from collections.abc import Mapping
from typing import Any

from lightning.pytorch.callbacks import EarlyStopping, LearningRateFinder
from torch.optim.lr_scheduler import ReduceLROnPlateau, StepLR

from lmkit.training.callbacks.checkpoint import Checkpoint
from lmkit.corpus import Files, HuggingFace
from lmkit.store.datatrove import Datatrove
from lmkit.model import LSTM
from lmkit.optim import WarmupCosine
from lmkit.store.prepared import Mixture, Store
from lmkit.tokenizer import Stored, Word


class MyFiles(Files): ...
class MyHub(HuggingFace): ...
class MyStore(Store): ...
class MyMixture(Mixture): ...
class MyDatatrove(Datatrove): ...
class MyWord(Word): ...
class MyStored(Stored): ...
class MyCosine(WarmupCosine): ...
class MyPlateau(ReduceLROnPlateau): ...
class MyFinder(LearningRateFinder): ...
class MyCheckpoint(Checkpoint): ...


class Paced(StepLR):
    steps_by = "step"


class Halved(LSTM):
    @staticmethod
    def mistakes(config: Mapping[str, Any], at: str) -> list[str]:
        size = config["hidden_size"]
        return [f"{at}.hidden_size={size}: must be even"] if size % 2 else []
"""
# Arguments with a class to be named in them; lmkit's own or its libraries', the user's, and what is
# said of both.
CASES = {
    "a store takes no tokenizer": (
        ["data=store", "data.path={store}", "data._target_={}", "tokenizer=bytes"],
        *("lmkit.store.Store", "MyStore", "leave tokenizer out"),
    ),
    "nor does a mixture": (
        ["data=mixture", "data.paths.A={store}", "data._target_={}", "tokenizer=bytes"],
        *("lmkit.store.Mixture", "MyMixture", "leave tokenizer out"),
    ),
    "a mixture has its protocol": (
        ["data=mixture", "data.paths.A={store}", "data._target_={}", "data.protocol=stream"],
        *("lmkit.store.Mixture", "MyMixture", "reads document by document"),
    ),
    "a mixture reads no window again": (
        ["data=mixture", "data.paths.A={store}", "data._target_={}", "trainer.overfit_batches=1"],
        *("lmkit.store.Mixture", "MyMixture", "never reads a window again"),
    ),
    "the weights of a mixture are its paths'": (
        ["data=mixture", "data.paths.A={store}", "data._target_={}", "data.weights.B=1"],
        *(
            "lmkit.store.Mixture",
            "MyMixture",
            "data.weights=B: expected one for",
        ),
    ),
    "tokens train no tokenizer": (
        ["data=datatrove", "data.path={text}", "data._target_={}", "tokenizer=word"],
        *("lmkit.store.Datatrove", "MyDatatrove", "no text to train a tokenizer on"),
    ),
    "not even one of the user's": (
        ["data=datatrove", "data.path={text}", "tokenizer=word", "tokenizer._target_={}"],
        *("lmkit.tokenizer.Word", "MyWord", "no text to train a tokenizer on"),
    ),
    "datatrove's tokens have no lines": (
        ["data=datatrove", "data.path={text}", "data._target_={}", "data.protocol=sentence"],
        *("lmkit.store.Datatrove", "MyDatatrove", "no line ends"),
    ),
    "datatrove's tokens have no bytes": (
        [
            *("data=datatrove", "data.path={text}", "data._target_={}"),
            *("callbacks=early_stopping", "callbacks.early_stopping.monitor=val/bits_per_byte"),
        ],
        *("lmkit.store.Datatrove", "MyDatatrove", "never logged"),
    ),
    "a saved tokenizer is of a path": (
        ["data=files", "data.path={text}", "tokenizer=stored", "tokenizer._target_={}"],
        *("lmkit.tokenizer.Stored", "MyStored", "name the saved tokenizer"),
    ),
    "words lose the bytes": (
        [
            *("data=files", "data.path={text}", "tokenizer=word", "tokenizer._target_={}"),
            *("callbacks=early_stopping", "callbacks.early_stopping.monitor=val/bits_per_byte"),
        ],
        *("lmkit.tokenizer.Word", "MyWord", "never logged"),
    ),
    "a plateau needs validations": (
        ["scheduler=plateau", "scheduler._target_={}", "trainer.limit_val_batches=0"],
        *(
            "torch.optim.lr_scheduler.ReduceLROnPlateau",
            "MyPlateau",
            "scheduler watches",
        ),
    ),
    "a decay needs an end": (
        [
            *("scheduler=cosine", "scheduler._target_={}", "~scheduler.warmup_steps"),
            *("trainer.max_epochs=-1", "trainer.max_time={{minutes: 1}}"),
        ],
        *("lmkit.optim.WarmupCosine", "MyCosine", "scheduler decays over the whole run"),
    ),
    "no callback seeks a rate": (
        ["+callbacks.rate._target_={}"],
        *("lightning.pytorch.callbacks.LearningRateFinder", "MyFinder", "would try rates in place"),
    ),
}


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "own_classes_of_a_user.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("LMKIT_ALLOW", "own_classes_of_a_user")
    yield "own_classes_of_a_user"
    sys.modules.pop("own_classes_of_a_user", None)


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A text, and a store that was made of it."""
    place = tmp_path_factory.mktemp("places")
    (place / "text.txt").write_text("".join(f"line {n} of it\n" for n in range(60)))
    outputs = f"outputs={place / 'outputs'}"
    given = ["data=files", f"data.path={place / 'text.txt'}", "data.unit=line", "tokenizer=bytes"]
    assert main(["prepare", *given, outputs, f"store={place / 'store'}", "workers=1"]) == 0
    return {"text": place / "text.txt", "store": place / "store"}


def mistakes(arguments: list[str], target: str, places: dict[str, Path]) -> list[str]:
    named = [each.format(target, **places) for each in arguments]
    with pytest.raises(UserError) as error:
        check(compose(named))
    return str(error.value).replace(target, "CLASS").splitlines()


@pytest.mark.parametrize("case", CASES)
def test_the_same_mistakes(case: str, own: str, places: dict[str, Path]) -> None:
    arguments, theirs, mine, sentence = CASES[case]
    expected = mistakes(arguments, theirs, places)
    assert sentence in "".join(expected)
    assert mistakes(arguments, f"{own}.{mine}", places) == expected


def test_a_checkpoint_does_without_validation(own: str) -> None:
    for target in ("lmkit.training.callbacks.checkpoint.Checkpoint", f"{own}.MyCheckpoint"):
        monitor = [f"callbacks.checkpoint._target_={target}", "trainer.limit_val_batches=0"]
        check(compose([*monitor, "callbacks.checkpoint.monitor=val/nll"]))


def test_a_service_is_not_asked(own: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datasets")
    monkeypatch.setattr("datasets.load_dataset", lambda **_: pytest.fail("asked"))
    check(compose(["data=huggingface", "data.name=nobody/none", f"data._target_={own}.MyHub"]))


def test_a_schedule_says_by_what_it_steps(own: str) -> None:
    # Were it stepped by epochs, 3 would be its length too, and no more.
    import torch

    from lmkit.config.targets import resolve_target
    from lmkit.optim import documented

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    paced = resolve_target(f"{own}.Paced")(optimizer, step_size=2)
    assert documented(paced) == "step"


def test_a_class_of_its_own_says_what_contradicts(own: str) -> None:
    with pytest.raises(UserError) as error:
        check(compose([f"model._target_={own}.Halved", "model.hidden_size=7"]))
    assert str(error.value) == "1 mistake:\n  model.hidden_size=7: must be even"


def test_a_class_of_a_group_of_the_users(
    own: str, places: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    group = tmp_path / "conf" / "data"
    group.mkdir(parents=True)
    (group / "mine.yaml").write_text(f"_target_: {own}.MyStore\npath: {places['store']}\n")
    argv = ["train", "--config-dir", str(tmp_path / "conf"), "data=mine", "tokenizer=bytes"]
    assert main([*argv, f"outputs={tmp_path / 'outputs'}"]) == 2
    assert "leave tokenizer out" in capsys.readouterr().err
    assert not (tmp_path / "outputs").exists()
