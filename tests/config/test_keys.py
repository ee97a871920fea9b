"""What lists, help and completion say of a config's keys is what binding will say of them."""

import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from lightning.pytorch import loggers

from lmkit.config.binding import signature_keys
from lmkit.config.compose import compose
from lmkit.config.docstrings import described, google
from lmkit.config.groups import CONF, group_options
from lmkit.config.keys import ROOT, class_keys, node_keys, nodes
from lmkit.config.targets import BESIDE, SLOTS, resolve_target, slot_bases

TARGETS = {
    node["_target_"]: group
    for group, options in group_options([CONF]).items()
    for option in options
    if group in SLOTS
    for named in [yaml.safe_load((CONF / group / f"{option}.yaml").read_text()) or {}]
    for node in ([named] if "_target_" in named else named.values())
    if isinstance(node, dict) and "_target_" in node
}


def given(target: str) -> tuple[str, ...]:
    return BESIDE["data"][1] if target == BESIDE["data"][0] else SLOTS[TARGETS[target]].given


@pytest.mark.parametrize("target", [*TARGETS, BESIDE["data"][0]])
def test_the_keys_by_source_are_those_of_the_signature(target):
    module, _, name = target.rpartition(".")
    signature = signature_keys(getattr(importlib.import_module(module), name))
    keys = class_keys(target)
    assert list(keys) == list(signature)
    for key, found in keys.items():
        assert (found.default is None) == signature[key].required, key


@pytest.mark.parametrize("target", [t for t in (*TARGETS, BESIDE["data"][0]) if "lmkit" in t])
def test_every_key_of_lmkits_own_has_a_line(target):
    without = [key for key, found in class_keys(target).items() if not found.line]
    assert [key for key in without if key not in given(target)] == []


def test_every_key_of_the_root_has_a_line():
    assert [n for n, key in class_keys(ROOT).items() if not key.line and n not in SLOTS] == []


@pytest.mark.parametrize("target", ["torch.optim.SGD", "lightning.pytorch.Trainer"])
def test_most_keys_of_others_have_a_line(target):
    keys = class_keys(target)
    assert sum(bool(key.line) for key in keys.values()) > 0.9 * len(keys)


@pytest.mark.parametrize("slot", SLOTS)
def test_what_the_code_passes_is_a_parameter_of_some_class(slot):
    """A name that no constructor takes is one that has been renamed."""
    (base,) = slot_bases(slot)
    classes = [resolve_target(t, (base,)) for t, group in TARGETS.items() if group == slot]
    if slot == "logger":  # also those of Lightning's that no option names
        classes += [getattr(loggers, name) for name in loggers.__all__]
    taken = {name for each in classes for name in signature_keys(each)}
    assert set(SLOTS[slot].given) <= taken


def test_entries_of_a_docstring():
    text = """What it is, of a: no entry, as a is inside a sentence.

    a: the first, which goes on
    in a second line. b: the second.
    c, d: two of them; e: no key, but one of a
    number: as it stands in a sentence.
    other: no key.
    """
    assert described(inspect.cleandoc(text), ["a", "b", "c", "d"]) == {
        "a": "the first, which goes on in a second line",
        "b": "the second",
        "c": "two of them; e: no key, but one of a number: as it stands in a sentence",
        "d": "two of them; e: no key, but one of a number: as it stands in a sentence",
    }
    assert described(inspect.cleandoc(text), []) == {}
    style = "Does it.\n\nArgs:\n    lr (float): the rate (default: 1). More.\n    x: no key.\n"
    assert google(style, ["lr"]) == {"lr": "the rate"}


def test_types_and_defaults_in_the_words_of_messages():
    keys = node_keys(compose(["model=lstm", "data=files", "data.path=x"]).config)
    assert keys["model.recurrent_init"][:2] == (
        "uniform | xavier | orthogonal | float",
        "'uniform'",
    )
    assert keys["model.forget_gate_bias"].type == "float | null"
    assert keys["data.unit"].type == "file | paragraph | heading | line"
    assert keys["data.path"].value == "???"
    assert keys["optimizer.betas"].value == [0.9, 0.999]
    assert not {"model.vocabulary_size", "data.cache", "trainer.logger"} & set(keys)
    assert keys["callbacks.samples.prompt"].line == "the text to continue"


def test_classes_of_a_package_of_the_users(tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "__init__.py").write_text("from .cells import Cell as Better\n")
    (tmp_path / "mine" / "cells.py").write_text(
        "from lmkit.model import LSTM\n"
        "class Cell(LSTM):\n"
        "    '''One more. depth: how deep.'''\n"
        "    def __init__(self, vocabulary_size, *, depth: int = 3, dropout: float = 0.0):\n"
        "        raise RuntimeError('not to be run')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    keys = class_keys("mine.Better")
    assert keys["depth"] == ("int", "3", "how deep")
    assert keys["dropout"].line.startswith("share of the connections")  # LSTM's docstring
    assert dict(nodes({"model": {"_target_": "mine.Better"}})).keys() == {"model"}
    assert class_keys("mine.Nothing") == class_keys("no.such.Module") == {}


def test_a_target_that_is_no_class_has_no_keys_and_is_not_imported(tmp_path, monkeypatch):
    (tmp_path / "harmful.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    for target in (
        "harmful.a.B",
        "lmkit.corpus.pydocs.platform.popen",
        "..x",
        "__main__.x",
        "x\0.y",
    ):
        assert class_keys(target) == {}


def test_nothing_is_imported():
    code = (
        "import sys; from lmkit.config.keys import class_keys\n"
        f"for target in {list(TARGETS)}:\n"
        "    assert class_keys(target) or target.endswith(('Bytes', 'TwoTailed')), target\n"
        "assert not {'torch', 'lightning', 'hydra'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parent
    )
    assert done.returncode == 0, done.stderr
