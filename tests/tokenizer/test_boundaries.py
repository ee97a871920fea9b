"""Which tokens begin a word, for each kind of tokenizer."""

import pytest
from all_tokenizers import WITH_SPACES, WITHOUT_SPACES, all_tokenizers

from lmkit.tokenizer import Pretrained
from lmkit.tokenizer.boundaries import word_starts


@pytest.mark.parametrize("name", sorted(WITH_SPACES))
def test_tokens_that_hold_the_space_before_a_word_begin_one(name):
    tokenizer = all_tokenizers()[name]
    starts = word_starts(tokenizer)
    assert starts.shape == (tokenizer.vocabulary_size,)
    assert 0 < starts.sum() < len(starts)
    assert not starts[tokenizer.eos_id]
    text = "the cat sat"
    spans, ids = tokenizer.spans(text), tokenizer.encode([text]).ids
    found = [bool(starts[i]) for i, (begin, stop) in zip(ids, spans, strict=True) if begin]
    expected = [text[begin:stop][:1] == " " for begin, stop in spans if begin]
    assert found == expected
    assert any(expected)


def test_of_a_vocabulary_those_that_begin_with_a_space():
    tokenizer = all_tokenizers()["byte_level"]
    assert isinstance(tokenizer, Pretrained)
    tokens = tokenizer._library.get_vocab(with_added_tokens=True)
    starts = word_starts(tokenizer)
    blank = ("Ġ", "Ċ", "ĉ", "č", "ċ", "Č")  # space, \n, \t, \r, \v, \f
    separators = {"ľ", "Ŀ", "ŀ", "ĝ", "Ĝ", "Ğ", "ğ"}  # \x1c to \x1f are whitespace to Python
    for token, i in tokens.items():
        if token not in separators:
            assert starts[i] == token.startswith(blank), token


@pytest.mark.parametrize("name", sorted(WITHOUT_SPACES))
def test_none_where_no_token_holds_spaces_or_one_goes_on_after_a_space(name):
    assert word_starts(all_tokenizers()[name]) is None


def test_every_tokenizer_is_one_or_the_other():
    assert all_tokenizers().keys() == WITH_SPACES | WITHOUT_SPACES
    assert not WITH_SPACES & WITHOUT_SPACES
