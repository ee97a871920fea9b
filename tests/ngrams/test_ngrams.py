"""Counts and probabilities of n-grams against dictionaries, and against worked examples."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from slow_ngrams import FALLBACK, START, SlowKneserNey

from lmkit.ngrams import counted, estimated, kneser_ney, read_symbols
from lmkit.ngrams import counts as counts_module
from lmkit.ngrams.kneser_ney import discounts

VOCABULARY, EOS = 6, 0

# Units of tokens, some of which repeat, so that there are counts above 1.
words = st.lists(st.integers(1, VOCABULARY - 2), max_size=9).map(lambda unit: [*unit, EOS])
texts = st.lists(words, min_size=1, max_size=8).map(lambda units: units + units[:2])
orders = st.integers(1, 7)
protocols = st.sampled_from(["unit", "stream"])


def symbols_of(units, order, protocol):
    ends = np.cumsum([len(unit) for unit in units])
    return read_symbols(
        np.concatenate(units).astype(np.uint16),
        None if protocol == "stream" else ends,
        eos_id=EOS,
        vocabulary_size=VOCABULARY,
        order=order,
    )


def spelled(tables, order):
    """The n-grams of an order as tuples, as the slow twin has them."""
    rows = tables.spelled(order).tolist()
    return [tuple(START if s == VOCABULARY else s for s in row) for row in rows]


@given(texts, orders, protocols, st.integers(1, 20))
def test_counts_are_those_of_dictionaries(units, order, protocol, at_once):
    slow = SlowKneserNey(units, VOCABULARY, order, EOS, stream=protocol == "stream")
    symbols = symbols_of(units, order, protocol)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(counts_module, "SORTED", at_once)  # a few positions at a time
        levels = list(counted(symbols))
    tables, _ = estimated(levels, VOCABULARY)
    assert [level.order for level in levels] == list(range(1, order + 1))
    for level in levels:
        found = spelled(tables, level.order)
        number = {ngram: i for i, ngram in enumerate(found)}
        expected = {ngram for ngram in slow.raw if len(ngram) == level.order}
        assert expected == set(found) if level.order > 1 else expected <= set(found)
        for ngram in expected:
            assert level.raw[number[ngram]] == slow.raw[ngram]
            assert level.adjusted[number[ngram]] == slow.adjusted[ngram]
        assert level.raw.sum() == sum(slow.raw[ngram] for ngram in expected)


def as_read(tables):
    """p(word | context) by the rule of backoff, from the spelled n-grams."""
    prob, backoff = {}, {}
    for order in range(1, tables.order + 1):
        ngrams = spelled(tables, order)
        prob |= dict(zip(ngrams, tables.log_prob[order - 1].tolist(), strict=False))
        if order < tables.order:
            backoff |= dict(zip(ngrams, tables.log_backoff[order - 1].tolist(), strict=True))

    def log_prob(word, context):
        if (*context, word) in prob:
            return prob[*context, word]
        return backoff.get(context, 0.0) + log_prob(word, context[1:])

    return log_prob


prunings = st.lists(st.integers(0, 2), max_size=2).map(lambda more: [0, *sorted(more)])


@given(texts, orders, protocols, prunings, st.integers(1, 20))
def test_probabilities_are_those_of_the_formulas_and_sum_to_one(
    units, order, protocol, prune, at_once
):
    prune = prune[:order]
    slow = SlowKneserNey(units, VOCABULARY, order, EOS, stream=protocol == "stream", prune=prune)
    levels = counted(symbols_of(units, order, protocol))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kneser_ney, "CHUNK", at_once)  # a few n-grams at a time
        tables, found = estimated(levels, VOCABULARY, prune)
    assert [each[:3] for each in found] == [pytest.approx(each) for each in slow.discounts]
    log_prob = as_read(tables)
    contexts = {ngram[:-1] for ngram in slow.raw} | {(1, 1, 1)[: order - 1]}
    for context in contexts:
        probs = [math.exp(log_prob(word, context)) for word in range(VOCABULARY)]
        assert math.fsum(probs) == pytest.approx(1, abs=1e-5)
        assert probs == pytest.approx(
            [slow.prob(word, context) for word in range(VOCABULARY)], rel=1e-5
        )


def test_pruned_ngrams_are_left_out_and_others_have_their_prefixes():
    units = [[1, 2, 3, EOS], [1, 2, 3, EOS], [1, 2, 4, EOS]]
    tables, _ = estimated(counted(symbols_of(units, 3, "unit")), VOCABULARY, [0, 0, 1])
    whole, _ = estimated(counted(symbols_of(units, 3, "unit")), VOCABULARY)
    assert spelled(tables, 2) == spelled(whole, 2)
    assert set(spelled(tables, 3)) == {(START, 1, 2), (1, 2, 3), (2, 3, EOS)}
    assert {(1, 2, 4), (2, 4, EOS)} == set(spelled(whole, 3)) - set(spelled(tables, 3))


def test_the_discounts_of_chen_and_goodman():
    """n_1..n_4 = 6, 3, 2, 1: Y = 6 / 12, so D_1 = 1 - 2/2 * 3/6, D_2 = 2 - 3/2 * 2/3, D_3+ =
    3 - 4/2 * 1/2."""
    adjusted = np.array([1] * 6 + [2] * 3 + [3] * 2 + [4] + [9] * 7, np.int32)
    assert discounts(adjusted)[:3] == pytest.approx((0.5, 1.0, 2.0))


@pytest.mark.parametrize(
    ("adjusted", "missing"),
    [
        ([1, 1, 3], "no n-gram has an adjusted count of 2"),
        ([2, 3, 3], "no n-gram has an adjusted count of 1"),
        ([1] * 9 + [2] + [3] * 9, "the discount of an adjusted count of 2 would be -20.09"),
    ],
)
def test_where_counts_are_too_few_the_discounts_are_set(adjusted, missing):
    found = discounts(np.array(adjusted, np.int32))
    assert found[:3] == FALLBACK
    assert found.missing == missing


def test_a_bigram_model_by_hand():
    """Two lines, `1 2` and `1 3`: unigrams have the adjusted counts 1 (of 1, 2, 3) and 2 (of <eos>,
    after 2 and 3), so the discounts are set; of the 5, 3 x 0.5 + 1 = 2.5 go to the 6 tokens."""
    tables, _ = estimated(counted(symbols_of([[1, 2, EOS], [1, 3, EOS]], 2, "unit")), VOCABULARY)
    uniform = 0.5 / VOCABULARY
    unigram = np.exp(tables.log_prob[0])
    assert unigram == pytest.approx([1 / 5 + uniform, *[0.1 + uniform] * 3, uniform, uniform])
    log_prob = as_read(tables)
    # `<s> 1` is there twice: D_2 = 1 of 2. `1 2` and `1 3` once: 0.5 of 2 for each.
    assert math.exp(log_prob(1, (START,))) == pytest.approx(0.5 + 0.5 * unigram[1])
    assert math.exp(log_prob(2, (1,))) == pytest.approx(0.25 + 0.5 * unigram[2])
    assert math.exp(log_prob(4, (1,))) == pytest.approx(0.5 * unigram[4])


def test_what_is_counted_so_far_rises_to_all_positions():
    symbols = symbols_of([[1, 2, EOS]] * 3, 3, "unit")
    seen = []
    list(counted(symbols, seen.append))
    assert seen == sorted(seen)
    assert seen[-1] <= 3 * len(symbols.ids)
