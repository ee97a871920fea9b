"""N-grams read in windows and lanes: contexts, documents, and the same figures however read."""

import numpy as np
import pytest
import torch
from counted_run import counted
from hypothesis import given
from hypothesis import strategies as st
from in_memory import EOS, VOCABULARY, Text, loader
from slow_ngrams import START, SlowKneserNey

from lmkit.model import NGram, Reader

lengths = st.lists(st.integers(1, 9), min_size=1, max_size=9)
orders = st.integers(1, 6)
layouts = st.fixed_dictionaries(
    {"num_lanes": st.sampled_from([1, 2, 3]), "bptt": st.integers(1, 7)}
)


def read(model, head, windows):
    """The nll of each target, in the order in which it is read, and the context of each."""
    reader, found = Reader(model), []
    for window in windows:
        output = reader.read(window.tokens, window.resets)
        nll = head.nll(output.hidden, window.targets)
        for lane, time in window.mask.nonzero().tolist():
            at = (lane, time)
            target = window.targets[at].item()
            found.append((target, tuple(output.hidden[at].tolist()), nll[at].item()))
    return found


def contexts_of(units, order):
    """Each target with the symbols before it, from the beginning of its unit."""
    for unit in units:
        text = [VOCABULARY, *unit]
        for end in range(1, len(text)):
            before = ([-1] * order + text[:end])[-(order - 1) :] if order > 1 else []
            yield text[end], tuple(before)


@given(lengths, orders, layouts)
def test_every_target_sees_the_tokens_before_it_in_its_document_and_no_others(
    lengths, order, layout
):
    text = Text(lengths)
    model, head = counted(text, order, "document", VOCABULARY, EOS)
    found = read(model, head, loader(text, seed=None, **layout))
    expected = sorted(contexts_of([d.tolist() for d in text.documents()], order))
    assert sorted((target, context) for target, context, _ in found) == expected


@given(lengths, orders, layouts, st.sampled_from(["document", "sentence"]))
def test_the_nll_is_that_of_the_formulas_whatever_the_lanes_and_windows(
    lengths, order, layout, protocol
):
    text, other = Text(lengths), Text([*lengths, 5, 8], seed=1)
    model, head = counted(other, order, protocol, VOCABULARY, EOS)
    units = [each.tolist() for each in other.documents()]
    slow = SlowKneserNey(units, VOCABULARY, order, EOS)
    found = read(model, head, loader(text, seed=None, protocol=protocol, **layout))
    for target, context, nll in found:
        context = [START if s == VOCABULARY else s for s in context if s >= 0]
        assert np.exp(-nll) == pytest.approx(slow.prob(target, context), rel=1e-5)
    assert len(found) == text.num_tokens


@given(lengths, orders, st.integers(1, 7))
def test_a_stream_runs_on_across_documents(lengths, order, bptt):
    text = Text(lengths)
    model, head = counted(text, order, "stream", VOCABULARY, EOS)
    units = [text.tokens.tolist()]
    slow = SlowKneserNey(units, VOCABULARY, order, EOS, stream=True)
    windows = loader(text, seed=None, protocol="stream", num_lanes=1, bptt=bptt)
    before = [EOS]
    for target, context, nll in read(model, head, windows):
        seen = tuple(before[-(order - 1) :]) if order > 1 else ()
        assert tuple(s for s in context if s >= 0) == seen
        assert np.exp(-nll) == pytest.approx(slow.prob(target, before), rel=1e-5)
        before.append(target)
    assert before[1:] == text.tokens.tolist()


def test_only_an_eos_with_nothing_before_it_begins_a_text():
    model = NGram(9, order=3)
    model.start.fill_(0)
    tokens = torch.tensor([[0, 0, 4, 5, 0, 6]])
    resets = torch.tensor([[False, False, False, True, False, False]])
    output = Reader(model).read(tokens, resets)
    assert output.hidden.tolist() == [[[-1, 9], [9, 0], [0, 4], [-1, -1], [-1, 9], [9, 6]]]


def test_a_stream_has_no_beginning():
    model, _ = counted(Text([3, 4]), 3, "stream", VOCABULARY, EOS)
    output = Reader(model).read(torch.tensor([[EOS, 4]]), torch.zeros(1, 2, dtype=torch.bool))
    assert output.hidden.tolist() == [[[-1, EOS], [EOS, 4]]]


@pytest.mark.parametrize(
    ("prune", "mistake"),
    [
        ([1, 1], "model.prune=[1,1]: the first, of single tokens, must be 0; all of them stay"),
        ([0, 2, 1], "model.prune=[0,2,1]: must not fall, as each n-gram needs the shorter ones"),
        ([0, 0, 0, 0], "model.prune=[0,0,0,0] has 4 numbers but model.order=3"),
    ],
)
def test_prunings_that_cannot_be(prune, mistake):
    (found,) = NGram.mistakes({"order": 3, "prune": prune}, "model")
    assert found.startswith(mistake)


@pytest.mark.parametrize("prune", [None, [0], [0, 0, 1]])
def test_prunings_that_can_be(prune):
    assert NGram.mistakes({"order": 3, "prune": prune}, "model") == []
