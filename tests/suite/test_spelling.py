"""Sentences respelled as a model's corpus is written."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmkit.suite.spelling import respelled
from lmkit.tokenizer import Bytes, Word

SPECIALS = ["<eos>", "<unk>", "a"]
WIKITEXT = Word.of([*SPECIALS, ".", ",", "?", '"', "'t", "'s", "@-@", "Mr.", "isn", "is"])
TREEBANK = Word.of([*SPECIALS, ".", ",", "n't", "'s", "is", "ca"])
MIKOLOV = Word.of([*SPECIALS, "n't", "'s", "is", "ca", "mr."])


@pytest.mark.parametrize(
    ("tokenizer", "text", "expected"),
    [
        (WIKITEXT, "It isn't.", "It isn 't ."),
        (WIKITEXT, "Can't he?", "Can 't he ?"),
        (WIKITEXT, '"Mr. Smith," he said', '" Mr. Smith , " he said'),
        (WIKITEXT, "the girls' ex-wife's dog", "the girls ' ex @-@ wife 's dog"),
        (WIKITEXT, "(yes)", "( yes )"),
        (WIKITEXT, "what ?", "what ?"),
        (WIKITEXT, "wait...", "wait . . ."),
        (TREEBANK, "It isn't.", "It is n't ."),
        (TREEBANK, "Can't he? It can't.", "Ca n't he ? It ca n't ."),
        (TREEBANK, "the girl's ex-wife,", "the girl 's ex-wife ,"),
        (MIKOLOV, "It isn't, it's.", "It is n't it 's"),
        (MIKOLOV, "mr. smith", "mr. smith"),
    ],
)
def test_apart(tokenizer, text, expected):
    assert respelled(tokenizer, "apart", lower=False)(text) == expected


def test_lower_case_comes_first():
    assert respelled(MIKOLOV, "apart", lower=True)("Mr. Smith CAN'T.") == "mr. smith ca n't"
    assert respelled(WIKITEXT, "as_is", lower=True)("It ISN'T.") == "it isn't."


def test_as_is_is_as_it_is():
    assert respelled(WIKITEXT, "as_is", lower=False)("It  isn't.") == "It  isn't."


def test_marks_stay_for_a_tokenizer_without_words():
    assert respelled(Bytes(), "apart", lower=False)("Yes.") == "Yes ."


@given(st.text(alphabet="aZ'.,-\"()nt s", max_size=30))
def test_only_spaces_are_added_and_no_word_is_cut_twice(text):
    respell = respelled(TREEBANK, "apart", lower=False)
    once = respell(text)
    assert once.replace(" ", "") == text.replace(" ", "")
    assert respell(once) == once
