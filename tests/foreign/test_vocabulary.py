"""Vocabularies of other programs: every token keeps its id."""

import json

import pytest
import yaml

from lmkit.errors import UserError
from lmkit.foreign import Vocabulary, foreign_tokenizer, read_vocabulary

WORDS = ["<eos>", "the", "cat", "ü", "<unk>"]
FILES = {
    "vocab.txt": "\n".join(WORDS) + "\n",
    "without a last line end.txt": "\n".join(WORDS),
    "windows.txt": "\r\n".join(WORDS) + "\r\n",
    "tokens.txt": "".join(f"{word} {i}\n" for i, word in reversed(list(enumerate(WORDS)))),
    "list.json": json.dumps(WORDS),
    "ids.json": json.dumps({word: i for i, word in enumerate(WORDS)}),
    "config.yaml": yaml.safe_dump({"lm": "seq_rnn", "token_list": WORDS}, allow_unicode=True),
}


@pytest.mark.parametrize("name", FILES)
def test_the_words_by_id(tmp_path, name):
    path = tmp_path / name
    path.write_text(FILES[name], newline="")
    assert read_vocabulary(path) == Vocabulary(path, tuple(WORDS))


def test_the_tokenizer_has_these_ids(tmp_path):
    tokenizer = foreign_tokenizer(Vocabulary(tmp_path, tuple(WORDS)), 5, None)
    assert tokenizer.encode(["the cat\na ü"]).ids.tolist() == [1, 2, 0, 4, 3, 0]
    assert (tokenizer.eos_id, tokenizer.unk_id) == (0, 4)


def test_words_of_other_names_take_these_roles(tmp_path):
    words = ["<blank>", "a", "<sos/eos>", "UNKNOWN"]
    tokenizer = foreign_tokenizer(Vocabulary(tmp_path, tuple(words)), 4, "UNKNOWN")
    assert tokenizer.encode(["b a"]).ids.tolist() == [3, 1, 2]


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        ("{", "v.json", "cannot be read"),
        ('{"a": 0, "b": 2}', "v.json", "expected each word's id, from 0 to 1, once"),
        ("[1]", "v.json", "expected a list of words"),
        ("lm: x\n", "v.yaml", "expected a list of words"),
        ("a: [\n", "v.yaml", "cannot be read"),
    ],
)
def test_files_that_are_no_vocabulary(tmp_path, content, name, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        read_vocabulary(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        read_vocabulary(tmp_path / "v.txt")
    (tmp_path / "v.txt").write_bytes(b"abc\xff")
    with pytest.raises(UserError, match="not UTF-8: byte 3 is 0xff"):
        read_vocabulary(tmp_path / "v.txt")


@pytest.mark.parametrize(
    ("words", "given", "message"),
    [
        (["<eos>", "a"], {}, "has 2 words, the model's matrices 3 rows"),
        (["<eos>", "<unk>", "<eos>"], {}, "has the word '<eos>' twice"),
        (["<eos>", "a", "b"], {}, "has none of <unk>, .*, the word that stands for unknown words"),
        (["<unk>", "a", "b"], {}, "has none of <eos>, .* that ends a sentence: name it with eos="),
        (["<eos>", "<unk>", "a"], {"eos": "b"}, "has no 'b', the word that ends a sentence"),
        (["<eos>", "<unk>", "a"], {"eos": "a"}, "has 'a' and '<eos>': one of them ends a sentence"),
    ],
)
def test_a_vocabulary_that_does_not_fit(tmp_path, words, given, message):
    with pytest.raises(UserError, match=message):
        foreign_tokenizer(Vocabulary(tmp_path / "v.txt", tuple(words), **given), 3, None)
