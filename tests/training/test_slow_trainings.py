"""Hundreds of updates of every cell, and of the mixture of softmaxes, are those of a plain loop of
the equations of its paper; AWD-LSTM's are in test_awd.py."""

import copy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from in_memory import EOS, VOCABULARY, Text, loader
from quiet_trainer import Collected, make_trainer
from slow_mixture import slow_nll
from slow_models import CELLS, build, slow_hidden

from lmkit.head import FullSoftmax, MixtureOfSoftmaxes
from lmkit.training.task import Task

UPDATES, RATE, CLIP = 200, 5e-3, 1.0
TEXT = Text([4, 7, 2, 3])
SLOWLY = {"layer norm": 1e-3, "mlstm": 1e-3}  # rates; their norms magnify the rounding of updates


def trained(model, head, rate, directory):
    """The nll of each update of a training, each of all documents in two lanes."""
    logger = Collected(directory)
    trainer = make_trainer(
        logger=logger,
        max_epochs=UPDATES,
        gradient_clip_val=CLIP,
        check_val_every_n_epoch=UPDATES,
        log_every_n_steps=1,
    )
    task = Task(model, head, partial(torch.optim.Adam, lr=rate))
    trainer.fit(task, loader(TEXT, num_lanes=2, bptt=100), loader(TEXT, seed=None))
    return logger.of("train/nll")


def by_hand(kind, model, head, rate):
    """The same by the equations, a document at a time."""
    parameters = list(dict.fromkeys([*model.parameters(), *head.parameters()]))
    optimizer = torch.optim.Adam(parameters, lr=rate)
    seen = []
    for _ in range(UPDATES):
        nll = 0.0
        for document in TEXT.documents():
            hidden = slow_hidden(kind, model, [EOS, *document[:-1]])
            targets = torch.from_numpy(document)
            if isinstance(head, MixtureOfSoftmaxes):
                nll = nll + slow_nll(head, hidden, targets).sum()
            else:
                logits = hidden @ head.weight.T + head.bias
                nll = nll + F.cross_entropy(logits, targets, reduction="sum")
        loss = nll / TEXT.num_tokens
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, CLIP)
        optimizer.step()
        seen.append(loss.item())
    return seen


def assert_alike(kind, model, head, directory):
    copied = copy.deepcopy((model, head))
    rate = SLOWLY.get(kind, RATE)
    found = trained(model, head, rate, directory)
    expected = by_hand(kind, *copied, rate)
    assert found == pytest.approx(expected, rel=1e-4)
    assert expected[-1] < 0.7 * expected[0]


@pytest.mark.parametrize("kind", [*CELLS, "rms_norm lstm"])
def test_a_cell_is_trained_as_its_equations_are(kind, tmp_path):
    model = build(kind, VOCABULARY, num_layers=1)
    head = FullSoftmax(model.hidden_size, VOCABULARY, init_range=0.5)
    assert_alike(kind, model, head, tmp_path)


def test_a_mixture_is_trained_as_its_equation_is(tmp_path):
    model = build("lstm", VOCABULARY, num_layers=1, hidden_size=6)
    head = MixtureOfSoftmaxes(6, VOCABULARY, init_range=0.5, num_experts=3)
    assert_alike("lstm", model, head, tmp_path)
