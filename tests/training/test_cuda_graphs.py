"""Captured steps, with a stand-in that computes again what a CUDA graph would repeat.

What a card makes of them is in tests/journeys/test_cuda.py.
"""

import pytest
import torch
from fitted import Place, assert_same
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lmkit import kernels
from lmkit.assembly import make_data
from lmkit.config.groups import CONF, group_options
from lmkit.model import Reader
from lmkit.model.dropout import Masks
from lmkit.training import computation, cuda_graphs, task
from lmkit.training.components import make_task

ADAM = ("optimizer=adam", "model.tie_weights=false")  # gradients are dense on the CPU, too
DROPOUT = ("model.dropout=0.3", "model.word_dropout=0.1", "model.weight_dropout=0.5")


class Again:
    """Computes on `replay` what it stands for, into the tensors of the first time."""

    of_steps = of_scores = 0  # replays

    def __init__(self, function):
        self.function = function
        self.result = function()

    def replay(self):
        if hasattr(self.result, "loss"):
            Again.of_steps += 1
        else:
            Again.of_scores += 1
        for kept, new in zip(tensors(self.result), tensors(self.function()), strict=True):
            kept.copy_(new)


def tensors(result):
    return [leaf for leaf in tree_leaves(result) if leaf is not None]


def captured(function):
    graph = Again(function)
    return graph, graph.result


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path)


@pytest.fixture
def capturing(monkeypatch):
    def begin(after):
        monkeypatch.setattr(cuda_graphs, "capture", captured)
        monkeypatch.setattr(cuda_graphs, "AFTER", after)
        monkeypatch.setattr(computation, "capturable", lambda module, parts: True)
        monkeypatch.setattr(Again, "of_steps", 0)
        monkeypatch.setattr(Again, "of_scores", 0)

    return begin


@pytest.mark.parametrize(
    "more",
    [
        DROPOUT,
        ("model=gru", *DROPOUT, "model.locked_dropout=true", "regularizers=[ar,tar]"),
        ("model=mogrifier", "model.rank=2", "head=mixture", "model.zoneout=0.1"),
        ("averaging=ema", "averaging.decay=0.9", "head.bias=false"),
        ("data.protocol=document",),
    ],
)
def test_a_training_of_captured_steps_is_the_one_of_single_operators(place, capturing, more):
    plain = place.fit(*ADAM, *more)
    capturing(after=3)
    assert_same(place.train(*ADAM, *more), plain)
    assert 0 < Again.of_steps < 36
    assert Again.of_scores > 0


@pytest.mark.parametrize("what", ["dropout", "a frozen embedding"])
def test_what_changes_in_the_middle_is_obeyed(place, capturing, monkeypatch, what):
    begin = task.Task.on_train_batch_start

    def changed(self, batch, index):
        early = self.trainer.fit_loop.total_batch_idx < 15
        if what == "dropout":
            self.model.dropout = 0.2 if early else 0.6
        else:
            self.model.embedding.weight.requires_grad_(early)
        begin(self, batch, index)

    monkeypatch.setattr(task.Task, "on_train_batch_start", changed)
    plain = place.train(*ADAM, *DROPOUT, "model.num_layers=2")
    capturing(after=3)
    assert_same(place.train(*ADAM, *DROPOUT, "model.num_layers=2"), plain)
    assert 20 < Again.of_steps < 33


def test_a_killed_training_of_captured_steps_resumes_bit_for_bit(place, capturing):
    settings = (*ADAM, *DROPOUT, "callbacks.checkpoint.every_n_train_steps=4")
    capturing(after=2)
    whole = place.fit(*settings)
    assert_same(place.train(*settings, kill_at=(6, 23)), whole)


@pytest.mark.parametrize(
    "more",
    [("trainer.accumulate_grad_batches=2",), ("data.variable_bptt=true", "data.protocol=stream")],
)
def test_what_is_not_the_same_from_step_to_step_is_not_captured(place, capturing, more):
    capturing(after=5)
    place.fit(*ADAM, *more)
    assert Again.of_steps == 0


class Storages(TorchDispatchMode):
    """Notes the operators that are given memory which was there before, other than `known`."""

    def __init__(self, known):
        super().__init__()
        self.known = {storage(tensor) for tensor in known}
        self.others = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        if any(storage(tensor) not in self.known for tensor in given):
            self.others.append(str(function))
        result = function(*args, **(kwargs or {}))
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        self.known |= {storage(tensor) for tensor in made}
        return result


def storage(tensor):
    return tensor.untyped_storage()._cdata


CELLS = [
    *(
        f"model={name}"
        for name in group_options([CONF])["model"]
        if name not in ("ngram", "window")
    ),
    "model=window ~model.num_layers",
]


@pytest.mark.parametrize("more", [*CELLS, "head=mixture", "head=projected", "model.zoneout=0.1"])
def test_a_captured_function_uses_no_memory_that_may_be_gone_at_a_replay(place, more):
    """After a first call, as before a capture, it reads and writes what is its own, the weights,
    the window, the state and the masks."""
    rank = ["model.rank=2"] if "mogrifier" in more else []
    config = place.config(*ADAM, *DROPOUT[:1], *more.split(), *rank)
    data = make_data(config)
    trained = make_task(config, data).train()
    window = next(iter(data.loader("train", train=True)))
    state = Reader(trained.model).before(window.tokens)
    inputs = [*window[:5], *tree_leaves(state), *trained.parameters()]
    for function in (trained.both_passes, trained.evaluation_pass):
        alone = cuda_graphs.Graph(function, trained.head, [])._alone
        with kernels.use("torch"), Masks(1, 0, 0).use():
            alone(window, state)
            with Storages(inputs) as storages:
                alone(window, state)
        assert storages.others == []
