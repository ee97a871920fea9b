"""Words of texts and the sums of their tokens, against loops over single tokens."""

import math

import numpy as np
import pytest
from all_tokenizers import WITH_SPACES, all_tokenizers, tiny_model
from hypothesis import example, given
from hypothesis import strategies as st

from lmkit.inference.tokens import read_tokens
from lmkit.inference.words import Words, previous, read_words, reductions, sum_up

NAMES = sorted(all_tokenizers())
ATOMS = [
    *("the", "cat", "dogs", "The", "zebra", "'s", ".", "<eos>", "<unk>", "naïve", "e\u0301"),
    *("🙂", "\u200b", "ﬁ", " ", "  ", "\n", " \n", "\t", "\u00a0", "\u3000", "a", "x"),
]
CELLS = st.lists(
    st.lists(st.sampled_from(ATOMS), min_size=1, max_size=8)
    .map("".join)
    .filter(lambda text: text.strip()),
    min_size=1,
    max_size=3,
)


def slow_owner(text, span, ids, tokenizer, by_line, found):
    """The word of a token, by looking at the characters from its first one on."""
    begin, stop = span
    ends = ids == tokenizer.eos_id or (by_line and "\n" in text[begin:stop])
    if ends and not text[begin:stop].strip():
        return -1
    for place in range(begin, len(text)):
        for number, (first, last) in enumerate(found):
            if first <= place < last:
                return number
    return len(found) - 1


def places(text):
    """The begin and end of each word of `text.split()`."""
    found, at = [], 0
    for word in text.split():
        begin = text.index(word, at)
        found.append((begin, begin + len(word)))
        at = begin + len(word)
    return found


@pytest.mark.parametrize("by_line", [False, True])
@pytest.mark.parametrize("name", NAMES)
@given(texts=st.lists(CELLS, min_size=1, max_size=3), joint=st.sampled_from([" ", "\n"]))
@example(texts=[["\u200b the", " \n cat \u00a0x "], ["\u200b"]], joint="\n")
def test_every_token_has_its_word_and_no_surprisal_is_lost(name, by_line, texts, joint):
    trained = tiny_model(name)
    tokenizer = trained.tokenizer
    text, words = read_words(texts, joint, tokenizer, by_line)
    joined = [joint.join(cells) for cells in texts]
    assert words.words == [word for each in joined for word in each.split()]
    cells = [cell for each in texts for cell in each]
    assert words.cell.tolist() == [i for i, cell in enumerate(cells) for _ in cell.split()]
    owners, before = [], 0
    for each in joined:
        found = places(each)
        ids = tokenizer.encode([each], by_line).ids.tolist()
        for token, span in zip(ids, tokenizer.spans(each, by_line), strict=True):
            owner = slow_owner(each, span, token, tokenizer, by_line, found)
            owners.append(owner if owner < 0 else before + owner)
        before += len(found)
    assert words.token_word.tolist() == owners
    units = [line for each in joined for line in (each.split("\n") if by_line else [each])]
    assert words.unit.tolist() == [i for i, unit in enumerate(units) for _ in unit.split()]

    protocol = "sentence" if by_line else "document"
    tokens = read_tokens(trained, text, protocol, trained.word_starts)
    scored = [score for each in joined for score in trained.score(each, protocol=protocol)]
    assert tokens.bits == pytest.approx([score.bits for score in scored], abs=1e-4)
    unknown = np.asarray(text.tokens) == (-1 if tokenizer.unk_id is None else tokenizer.unk_id)
    measures = sum_up(words, tokens, unknown, None)
    rest = sum(bits for bits, owner in zip(tokens.bits, words.token_word, strict=True) if owner < 0)
    total = math.fsum(score.bits for score in scored)
    assert np.nansum(measures.surprisal) + rest == pytest.approx(total, abs=1e-3)
    assert measures.num_tokens.sum() + sum(owner < 0 for owner in owners) == len(owners)


@pytest.mark.parametrize("name", NAMES)
def test_the_measures_of_a_word_are_of_its_tokens(name):
    trained = tiny_model(name)
    text = "The zebra  sat on a mat , naïve <unk> x"
    read, words = read_words([[text]], " ", trained.tokenizer, False)
    starts = trained.word_starts
    assert (starts is not None) == (name in WITH_SPACES)
    tokens = read_tokens(trained, read, "document", starts)
    ids = np.asarray(read.tokens)
    unknown = ids == (-1 if trained.tokenizer.unk_id is None else trained.tokenizer.unk_id)
    measures = sum_up(words, tokens, unknown, None if starts is None else starts[ids])
    spans = trained.tokenizer.spans(text)
    scores = trained.score(text)
    for number, word in enumerate(words.words):
        own = [i for i in range(len(ids)) if words.token_word[i] == number]
        assert measures.num_tokens[number] == len(own)
        assert measures.unknown[number] == any(unknown[own])
        if not own:
            assert np.isnan(measures.surprisal[number])
            assert np.isnan(measures.entropy[number])
            continue
        bits = sum(scores[i].bits for i in own)
        assert measures.surprisal[number] == pytest.approx(bits, abs=1e-4), word
        first = next((i for i in own if text[slice(*spans[i])].strip()), own[0])
        entropy = scores[first].entropy / math.log(2)
        assert measures.entropy[number] == pytest.approx(entropy, abs=1e-4)
        assert measures.rank[number] == scores[first].rank
    assert (measures.corrected is None) == (starts is None)


def test_reductions_and_words_before_stay_within_a_text():
    entropy = np.array([3.0, 2.0, 2.5, np.nan, 1.0, 4.0, 3.0])
    words = Words([*"abcdefg"], *np.array([[0, 0, 1, 1, 1, 2, 2], [0, 0, 0, 0, 0, 4, 4]]), *"--")
    begins = words.begins
    assert begins.tolist() == [True, False, False, False, False, True, False]
    assert np.nan_to_num(reductions(entropy, begins), nan=-1).tolist() == [0, 1, 0, -1, -1, 0, 1]
    once = previous(np.arange(7), begins)
    assert once.tolist() == [-1, 0, 1, 2, 3, -1, 5]
    assert previous(once, begins).tolist() == [-1, -1, 0, 1, 2, -1, -1]
