"""Parts of the user's own that go wrong in a training, and what lmkit says of them."""

import json
import re
import sys
from pathlib import Path

import pytest

from lmkit import cli

PARTS = '''
"""Parts, most of them faulty."""

import sys
from pathlib import Path

import torch
from lightning.pytorch import Callback

from lmkit.model import Recurrent, RecurrentLayer


class Writes(Callback):
    """Has an argument of its own called path."""

    def __init__(self, path: str = "note.txt") -> None:
        self.path = path

    def on_validation_end(self, trainer, pl_module):
        Path(self.path).write_text("done")


class Tells(Callback):
    def __init__(self, generate, prompt: str = "the") -> None:
        self.generate, self.prompt = generate, prompt

    def on_validation_end(self, trainer, pl_module):
        Path("told.txt").write_text(self.generate(pl_module, self.prompt, 3, 1))


class Exits(Callback):
    def on_train_batch_end(self, *arguments):
        sys.exit(0)


class Layer(RecurrentLayer):
    num_gates = 1

    def step(self, inputs, weights, state):
        return self.made(torch.tanh(inputs[0] + state[0] @ weights[0].T))


def cell(name, made):
    layer = type(f"{name}Layer", (Layer,), {"made": staticmethod(made)})
    return type(name, (Recurrent,), {"layer": layer, "__module__": __name__})


Sound = cell("Sound", lambda h: (h,))
Narrow = cell("Narrow", lambda h: (h[:, 1:],))
Two = cell("Two", lambda h: (h, h))
Bare = cell("Bare", lambda h: h)
Nothing = cell("Nothing", lambda h: None)
'''
WORDS = ["the", "of", "and", "to", "in", "is", "that", "it", "was", "for", "on", "as", "with"]


@pytest.fixture
def settings(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LMKIT_ALLOW", "parts_of_mine")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "parts_of_mine", raising=False)
    (tmp_path / "parts_of_mine.py").write_text(PARTS)
    lines = [" ".join(WORDS[(i * j) % len(WORDS)] for j in range(1, 9)) for i in range(40)]
    (tmp_path / "text.txt").write_text("\n\n".join(lines))
    data = ["data=files", "data.path=text.txt", "data.unit=paragraph", "data.batch_size=4"]
    size = ["model.embedding_size=8", "model.hidden_size=8", "model.num_layers=1"]
    own = ["tokenizer=word", "data.bptt=10", "threads=1", "trainer.precision=32-true", "name=a"]
    return ["train", "run_id=r", "kernels=torch", "trainer.max_epochs=1", *data, *size, *own]


RUN = Path("outputs/a/r")


def test_an_argument_of_a_callback_is_its_own_whatever_its_name(settings):
    assert cli.main([*settings, "+callbacks.x._target_=parts_of_mine.Writes"]) == 0
    assert Path("note.txt").read_text() == "done"
    (sample,) = map(json.loads, (RUN / "samples.jsonl").read_text().splitlines())
    assert sample["text"]
    note = "+callbacks.x={_target_: parts_of_mine.Writes, path: other.txt}"
    assert cli.main([*settings, "run_id=s", note]) == 0
    assert Path("other.txt").read_text() == "done"


def test_a_callback_is_given_the_function_that_makes_samples(settings):
    assert cli.main([*settings, "+callbacks.x._target_=parts_of_mine.Tells"]) == 0
    assert Path("told.txt").read_text().strip()


def test_sys_exit_in_a_part_is_a_failure(settings, capfd):
    assert cli.main([*settings, "+callbacks.x._target_=parts_of_mine.Exits"]) == 1
    said = "sys.exit(0) ended the training before its end"
    assert f"error: a/r: {said}" in capfd.readouterr().err
    status = json.loads((RUN / "status.json").read_text())
    assert (status["status"], status["exit_code"], status["reason"]) == ("failed", 1, said)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("Narrow", r"a tuple of \(4, 7\)"),
        ("Two", r"a tuple of \(4, 8\), \(4, 8\)"),
        ("Bare", "a Tensor"),
        ("Nothing", "a NoneType"),
    ],
)
def test_a_cell_whose_step_makes_no_such_state(settings, capfd, name, found):
    assert cli.main([*settings, f"model._target_=parts_of_mine.{name}"]) == 2
    said = capfd.readouterr().err
    expected = r"expected a tuple of \(4, 8\): its num_states=1 tensors \(lanes, hidden_size\)"
    assert re.search(rf"error: {name}Layer\.step returned {found}, {expected}", said), said
    assert not RUN.exists()


def test_a_sound_cell_trains(settings):
    assert cli.main([*settings, "model._target_=parts_of_mine.Sound"]) == 0


def test_a_training_that_writes_no_checkpoints_says_so_at_its_beginning(settings, caplog):
    assert cli.main([*settings, "~callbacks.checkpoint"]) == 0
    said = "no checkpoints are written: what is trained can be neither resumed nor used"
    assert any(message.startswith(said) for message in caplog.messages)
