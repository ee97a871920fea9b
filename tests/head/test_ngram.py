"""The tables of n-grams: one probability, however it is asked for."""

import pytest
import torch
from counted_run import counted, state_of
from hypothesis import given
from hypothesis import strategies as st
from in_memory import EOS, VOCABULARY, Text
from torch import nn

from lmkit.head import NGramTables
from lmkit.head import ngram as module
from lmkit.model import NGram

orders = st.integers(1, 6)


def contexts(order, count, seed=0):
    """Contexts of symbols, some of which were never counted, some of them short."""
    draw = torch.Generator().manual_seed(seed)
    hidden = torch.randint(VOCABULARY, (1, count, order - 1), generator=draw)
    short = torch.randint(order, (count,), generator=draw)
    return hidden.masked_fill(torch.arange(order - 1) < short[:, None], -1)


@given(orders, st.sampled_from(["document", "stream"]), st.integers(1, 60), st.integers(0, 9))
def test_probabilities_sum_to_one_and_agree(order, protocol, at_once, seed):
    text = Text([9, 30, 2, 40], seed)
    _, head = counted(text, order, protocol, VOCABULARY, EOS)
    hidden = contexts(order, 20, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "VALUES", at_once * VOCABULARY)
        chunks = list(head.log_prob(hidden))
    assert max(map(len, chunks)) <= at_once  # memory is bounded
    log_prob = torch.cat(chunks)
    assert log_prob.dtype == torch.float32
    torch.testing.assert_close(log_prob.exp().sum(1), torch.ones(20))
    for target in range(VOCABULARY):
        nll = head.nll(hidden, torch.full((1, 20), target))
        torch.testing.assert_close(-log_prob[:, target], nll[0], rtol=1e-5, atol=1e-5)
        at = head.nll_at(hidden[0], torch.arange(20), torch.full((20,), target))
        assert torch.equal(at, nll[0])


def test_before_anything_is_counted_all_tokens_are_equally_likely():
    head = NGramTables(2, VOCABULARY)
    (log_prob,) = head.log_prob(contexts(3, 4))
    torch.testing.assert_close(log_prob.exp(), torch.full((4, VOCABULARY), 1 / VOCABULARY))


def test_weights_of_any_size_are_loaded():
    model, head = counted(Text([30, 20]), 4, "document", VOCABULARY, EOS)
    state = state_of(model, head)
    other = nn.ModuleDict({"model": NGram(VOCABULARY, order=4), "head": NGramTables(3, VOCABULARY)})
    other.load_state_dict(state)
    hidden = contexts(4, 30)
    targets = torch.arange(30)[None] % VOCABULARY
    assert torch.equal(other["head"].nll(hidden, targets), head.nll(hidden, targets))
    assert int(other["model"].start) == EOS
    assert not any(parameter.requires_grad for parameter in other["head"].parameters())


def test_weights_of_another_order_or_vocabulary_are_refused():
    _, head = counted(Text([30, 20]), 4, "document", VOCABULARY, EOS)
    with pytest.raises(RuntimeError, match="keys_4"):
        NGramTables(2, VOCABULARY).load_state_dict(head.state_dict())
    with pytest.raises(RuntimeError, match="log_prob_1"):
        NGramTables(3, VOCABULARY + 1).load_state_dict(head.state_dict())


def test_it_has_no_loss():
    head = NGramTables(2, VOCABULARY)
    with pytest.raises(TypeError, match="they are counted"):
        head.loss(contexts(3, 4), torch.zeros(1, 4, dtype=torch.long), torch.ones(1, 4))
