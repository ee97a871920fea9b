"""Sums of regions through the lanes against scoring each sentence by itself."""

import re
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from trained_run import MODELS, TOKENIZERS, load, make_run

from lmkit.errors import UserError
from lmkit.suite import sums
from lmkit.suite.reading import Source
from lmkit.suite.sums import Sequences, first_alike, has_unknown, region_sums, regions_of

SENTENCES = [
    ("the cat sat on the mat .",),
    ("the cat", "", "ran", ". the end"),
    ("the cat", "sat", "on"),
    ("a dog",),
    ("zebra Ünïcode — ran",),
    ("the cat", "sat", "on"),
    ("the", "", "zebra"),
    ("the", "", "giraffe"),
]


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    return tmp_path_factory.mktemp("outputs")


@pytest.fixture(scope="module")
def lstm(outputs):
    return load(make_run(outputs))


def slow_sums(trained, regions, end=False):
    """Bits of each region, from the scores of the sentence alone: each token counts for the region
    of its first character that is no space, by the tokens' surfaces."""
    text = " ".join(region for region in regions if region)
    of_character = []
    for index, region in enumerate(regions):
        of_character += [index] * (len(region) + 1 if region else 0)
    found, begin = [0.0] * len(regions), 0
    *scores, closing = trained.score(text, protocol="sentence")
    for token in scores:
        first = re.compile(r"\S").search(text, begin).start()
        found[of_character[first]] += token.bits
        begin += len(token.piece)
    if end:
        found[of_character[-1]] += closing.bits
    return found


@pytest.mark.parametrize("end", [False, True])
@pytest.mark.parametrize(
    ("kind", "tokenizer"),
    [*((kind, "word") for kind in MODELS), *(("lstm", name) for name in TOKENIZERS)],
)
def test_sums_are_those_of_the_scores_of_each_sentence(outputs, kind, tokenizer, end):
    trained = load(make_run(outputs, kind, tokenizer))
    found = region_sums(trained, SENTENCES, end)
    for regions, (bits, _) in zip(SENTENCES, found, strict=True):
        assert bits == pytest.approx(slow_sums(trained, regions, end), abs=1e-4)


@pytest.mark.parametrize(("lanes", "positions"), [(1, 8192), (3, 6), (128, 1)])
def test_sums_do_not_depend_on_the_lanes(lstm, monkeypatch, lanes, positions):
    before = region_sums(lstm, SENTENCES)
    monkeypatch.setattr(sums, "NUM_LANES", lanes)
    monkeypatch.setattr(sums, "POSITIONS", positions)
    for (bits, unknown), (then, unknown_then) in zip(
        region_sums(lstm, SENTENCES), before, strict=True
    ):
        assert bits == pytest.approx(then, abs=1e-5)
        assert unknown == unknown_then


def test_what_must_be_equal_is_equal_to_the_bit(lstm):
    found = region_sums(lstm, SENTENCES)
    assert found[2] == found[5]
    assert found[6] == found[7]  # two words that the model does not know
    assert found[6].has_unknown
    # The same beginning, before sentences go on in different ways.
    assert found[1].bits[0] == found[2].bits[0]
    assert [each.has_unknown for each in found] == has_unknown(lstm.tokenizer, SENTENCES)


def test_an_empty_region_and_a_sentence_without_tokens_have_no_surprisal(lstm):
    (found,) = region_sums(lstm, [("the", "", "cat")])
    assert found.bits[1] == 0
    assert region_sums(lstm, [("",), ("cat",)])[0] == ((0,), False)
    (ended,) = region_sums(lstm, [("", "")], end=True)
    assert ended.bits[0] > 0  # of the closing <eos> alone
    assert ended.bits[1] == 0


def test_a_sentence_with_eos_is_refused(lstm):
    with pytest.raises(UserError) as error:
        region_sums(lstm, [("the cat",), ("the <eos> cat",)])
    message = "'the <eos> cat' holds the token that ends a sentence: leave it out"
    assert str(error.value) == message


words = st.lists(st.integers(0, 3), max_size=5)


@given(st.lists(words, min_size=1, max_size=8))
def test_tokens_alike_are_those_after_the_same_tokens(rows):
    ids = np.array([i for row in rows for i in row], np.uint32)
    alike, context = first_alike(Sequences(ids, np.cumsum([len(row) for row in rows])))
    places = [(n, i) for n, row in enumerate(rows) for i in range(len(row))]
    for place, (n, i) in enumerate(places):
        upto = [p for p, (m, j) in enumerate(places) if rows[m][: j + 1] == rows[n][: i + 1]]
        before = [p for p, (m, j) in enumerate(places) if rows[m][:j] == rows[n][:i]]
        assert (alike[place], context[place]) == (upto[0], before[0])


@given(st.lists(st.text(alphabet="ab", max_size=4), min_size=1).filter(any), st.data())
def test_every_token_belongs_to_the_region_of_its_first_letter(regions, data):
    text = " ".join(filter(None, regions))
    cuts = data.draw(st.sets(st.integers(1, max(len(text) - 1, 1))))
    bounds = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    spans = [*pairwise(bounds), (len(text), len(text))]
    owner, position = {}, 0
    for index, region in enumerate(regions):
        for _ in region:
            while text[position] == " ":
                position += 1
            owner[position] = index
            position += 1
    last = max(index for index, region in enumerate(regions) if region)
    expected = [
        next((owner[i] for i in range(start, len(text)) if i in owner), last) for start, _ in spans
    ]
    assert regions_of(spans, text, regions) == expected


def in_python(formula, sums):
    """A formula evaluated by Python, which knows its signs but for the regions."""

    def number(match):
        return repr(sums[match[2]][int(match[1]) - 1])

    text = re.sub(r"\((\d+);%([^%]*)%\)", number, formula)
    text = text.replace("[", "(").replace("]", ")").replace("&", " and ")
    return eval(text)


@pytest.mark.parametrize("name", ["number_prep", "mvrr", "cleft"])
@pytest.mark.parametrize("tokenizer", ["bytes", "bpe"])
def test_syntaxgym_is_a_slow_loop_by_hand(outputs, shared_data, name, tokenizer):
    trained = load(make_run(outputs, "gru", tokenizer))
    suite = Source("syntaxgym", str(shared_data("syntaxgym") / f"{name}.json")).read()
    sentences = [tuple(regions.values()) for regions in suite.sentences()]
    found = iter(region_sums(trained, sentences))
    for item in suite.items[:12]:
        fast = {name: next(found).bits for name in item.sentences}
        slow = {
            name: slow_sums(trained, tuple(regions.values()))
            for name, regions in item.sentences.items()
        }
        for condition in slow:
            assert fast[condition] == pytest.approx(slow[condition], abs=1e-3)
        for formula in item.formulas:
            bits = {n: dict(enumerate(values, 1)) for n, values in fast.items()}
            assert formula.outcome(bits).holds == in_python(formula.text, slow)
