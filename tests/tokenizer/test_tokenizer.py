"""Tokenizers against slow loops, over any Unicode text; what is saved is what is loaded."""

import hashlib
import importlib
import json
import subprocess
import sys
import types
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lmkit.corpus import Files
from lmkit.errors import UserError
from lmkit.inference import Text
from lmkit.store import prepare
from lmkit.tokenizer import (
    ByteLevelBPE,
    Bytes,
    Characters,
    Encoded,
    Pattern,
    Pretrained,
    Tokenizer,
    Word,
    base,
    load_tokenizer,
    subword,
)

# Everything that str.split() cuts at, the specials, case that changes length, and the rest.
SPACES = [chr(point) for point in range(0x110000) if chr(point).isspace()]
ATOMS = [*SPACES, " ", "\n", "a", "B", "b", "<eos>", "<unk>", "İ", "ΑΣ", "\u200b", "\ufffd", "🙂"]
texts_of_atoms = st.lists(st.sampled_from(ATOMS), max_size=30).map("".join)
texts = st.one_of(texts_of_atoms, st.text(max_size=30))
documents = st.lists(texts, min_size=1, max_size=6)

TRAINING = [
    "the cat sat on the mat\n\nthe <eos> dog's  naïve 你好 🙂\n",
    "<eos><eos> <|endoftext|> x\ty\r\nthe end",
]


def trained(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.train(TRAINING)
    return tokenizer


def bpe() -> Tokenizer:
    return trained(ByteLevelBPE(vocabulary_size=300))


@pytest.fixture(scope="module")
def tokenizer_json(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level tokenizer of another program: it truncates, pads, and adds its own specials."""
    state = json.loads(bpe()._library.to_str().replace("<eos>", "<|endoftext|>"))
    library = tokenizers.Tokenizer.from_str(json.dumps(state))
    library.enable_truncation(4)
    library.enable_padding(length=7)
    library.post_processor = tokenizers.processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
    )
    path = tmp_path_factory.mktemp("pretrained") / "tokenizer.json"
    library.save(str(path))
    return path


@pytest.fixture(scope="module")
def byte_exact(tokenizer_json: Path) -> list[Tokenizer]:
    return [Bytes(), bpe(), Pretrained(str(tokenizer_json))]


def lines_of(text: str) -> list[str]:
    return text.removesuffix("\n").split("\n")


def slow_vocabulary(
    texts: list[str], min_frequency: int, max_size: int | None, lower: bool
) -> list[str]:
    words = [
        word
        for text in texts
        for line in lines_of(text)
        for word in [*(line.lower() if lower else line).split(), "<eos>"]
    ]
    counts = Counter(words)
    ranked = [w for w, n in counts.most_common() if n >= min_frequency]
    ranked = [w for w in ranked if w not in ("<eos>", "<unk>")]
    kept = {*ranked[: None if max_size is None else max_size - 2], "<eos>", "<unk>"}
    known = Counter(w if w in kept else "<unk>" for w in words)
    places = {w: n for n, w in reversed(list(enumerate(words)))}
    return sorted(kept, key=lambda w: (-known[w], places.get(w, len(words))))


def slow_words(tokenizer: Word, texts: list[str]) -> Encoded:
    ids, document_ends, line_ends, unknown = [], [], [], 0
    index = {word: i for i, word in enumerate(tokenizer.vocabulary)}
    for text in texts:
        for line in lines_of(text):
            words = [*(line.lower() if tokenizer.lower else line).split(), "<eos>"]
            unknown += sum(word not in index for word in words)
            ids += [index.get(word, index["<unk>"]) for word in words]
            line_ends.append(len(ids))
        document_ends.append(len(ids))
    num_bytes = [len(text.encode()) for text in texts]
    return Encoded(*map(np.array, (ids, document_ends, line_ends, num_bytes)), unknown)


def assert_same(found: Encoded, expected: Encoded) -> None:
    for name in ("ids", "document_ends", "line_ends", "num_bytes", "num_unknown"):
        assert np.array_equal(getattr(found, name), getattr(expected, name)), name


@given(documents, documents, st.integers(1, 3), st.none() | st.integers(3, 6), st.booleans())
@settings(max_examples=400, deadline=None)
def test_word_equals_a_loop_over_split_lines(
    train: list[str], other: list[str], min_frequency: int, max_size: int | None, lower: bool
) -> None:
    tokenizer = Word(min_frequency, max_size, lower)
    tokenizer.train(iter(train))
    assert tokenizer.vocabulary == slow_vocabulary(train, min_frequency, max_size, lower)
    for texts in (train, other):
        assert_same(tokenizer.encode(texts), slow_words(tokenizer, texts))


def test_word_batches_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"w{n % 7} w{n % 3}\u2003x \n w{n % 5}" for n in range(40)]
    whole = Word()
    whole.train(texts)
    monkeypatch.setattr("lmkit.tokenizer.word.in_batches", partial(base.in_batches, size=20))
    batched = Word()
    batched.train(texts)
    assert batched.vocabulary == whole.vocabulary == slow_vocabulary(texts, 1, None, False)


def test_word_vocabulary_by_frequency_then_first_appearance() -> None:
    tokenizer = Word()
    tokenizer.train(["b a a\nc b\n", "<unk> a"])
    assert tokenizer.vocabulary == ["a", "<eos>", "b", "c", "<unk>"]
    assert (tokenizer.eos_id, tokenizer.unk_id, tokenizer.vocabulary_size) == (1, 4, 5)


def test_word_unk_ranks_by_all_it_stands_for_and_counts_what_it_replaced() -> None:
    tokenizer = Word(min_frequency=2)
    tokenizer.train(["a a x y z"])
    assert tokenizer.vocabulary == ["<unk>", "a", "<eos>"]
    encoded = tokenizer.encode(["a b <unk> b"])
    assert encoded.ids.tolist() == [1, 0, 0, 0, 2]
    assert encoded.num_unknown == 2  # the <unk> of the text is a known word


def test_word_literal_eos_is_the_token_but_ends_no_line() -> None:
    tokenizer = trained(Word())
    encoded = tokenizer.encode(["the <eos> cat\ncat"])
    eos = tokenizer.eos_id
    assert [i == eos for i in encoded.ids] == [False, True, False, True, False, True]
    assert encoded.line_ends.tolist() == [4, 6]
    assert encoded.num_unknown == 0


def test_word_prompt_and_text() -> None:
    tokenizer = trained(Word(lower=True))
    ids = tokenizer.encode_text("The cat\nsat ON")
    assert ids == tokenizer.encode(["the cat\nsat on"]).ids.tolist()[:-1]
    assert tokenizer.encode_text("the\n") == tokenizer.encode(["the"]).ids.tolist()
    assert tokenizer.decode(ids) == "the cat\nsat on"
    assert tokenizer.pieces(ids) == ["the", " cat", "\n", "sat", " on"]


def test_word_reads_wikitext_exactly(wikitext: Path) -> None:
    tokenizer = Word()
    splits = {name: (wikitext / f"{name}.txt").read_text() for name in ("train", "valid", "test")}
    tokenizer.train([splits["train"]])
    assert tokenizer.vocabulary_size == 33_278
    encoded = {name: tokenizer.encode([text]) for name, text in splits.items()}
    assert {name: len(found.ids) for name, found in encoded.items()} == {
        "train": 2_088_628,
        "valid": 217_646,
        "test": 245_569,
    }
    assert [found.num_unknown for found in encoded.values()] == [0, 0, 0]
    assert_same(encoded["valid"], slow_words(tokenizer, [splits["valid"]]))


@given(documents)
@settings(max_examples=200, deadline=None)
def test_exact_round_trip_of_any_text(byte_exact: list[Tokenizer], texts: list[str]) -> None:
    for tokenizer in [*byte_exact, Characters()]:
        if isinstance(tokenizer, Characters):
            tokenizer.train(texts)
        encoded = tokenizer.encode(texts)
        starts = [0, *encoded.document_ends[:-1]]
        assert encoded.num_bytes.tolist() == [len(text.encode()) for text in texts]
        assert encoded.num_unknown == 0
        for text, start, end in zip(texts, starts, encoded.document_ends, strict=True):
            ids = encoded.ids[start:end].tolist()
            assert ids == [*tokenizer.encode_text(text), tokenizer.eos_id]
            assert ids.count(tokenizer.eos_id) == 1
            assert tokenizer.decode(ids) == "".join(tokenizer.pieces(ids)) == text


@given(documents)
@settings(max_examples=200, deadline=None)
def test_lines_end_with_the_token_that_completes_the_newline(
    byte_exact: list[Tokenizer], texts: list[str]
) -> None:
    characters = Characters()
    characters.train(texts)
    for tokenizer in [*byte_exact, characters]:
        encoded = tokenizer.encode(texts)
        expected, position = [], 0
        for text in texts:
            ids = tokenizer.encode_text(text)
            surfaces = [tokenizer.decode(ids[:n]) for n in range(len(ids) + 1)]
            for n in range(1, len(ids)):
                if surfaces[n].count("\n") > surfaces[n - 1].count("\n"):
                    expected.append(position + n)
            position += len(ids) + 1
            expected.append(position)
        assert encoded.line_ends.tolist() == expected


@pytest.mark.parametrize("kind", [Bytes, Characters])
@given(texts=documents)
def test_lines_of_bytes_and_characters_are_the_lines_of_the_text(
    kind: type[Tokenizer], texts: list[str]
) -> None:
    tokenizer = kind()
    tokenizer.train(texts)
    encoded = tokenizer.encode(texts)
    lines = np.split(encoded.ids, encoded.line_ends[:-1])
    assert [tokenizer.decode(line.tolist()).removesuffix("\n") for line in lines] == [
        line for text in texts for line in lines_of(text)
    ]


@given(st.lists(st.integers(0, 256)))
def test_pieces_join_to_the_text_of_any_ids(ids: list[int]) -> None:
    for tokenizer in (Bytes(), bpe_once()):
        assert "".join(tokenizer.pieces(ids)) == tokenizer.decode(ids)
        assert len(tokenizer.pieces(ids)) == len(ids)


def bpe_once(made: list[Tokenizer] = []) -> Tokenizer:  # noqa: B006
    if not made:
        made.append(bpe())
    return made[0]


@given(st.lists(st.sampled_from([" ", "  ", "\n", "\x1c", "\u2003", "a", "1", "'s", "é"])))
@settings(max_examples=300, deadline=None)
def test_a_long_text_in_pieces_is_the_same_tokens(atoms: list[str]) -> None:
    text, tokenizer = "".join(atoms), bpe_once()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subword, "CHUNK", 2)
        in_pieces = tokenizer.encode_text(text)
    assert in_pieces == tokenizer._library.encode(text).ids


def test_training_in_pieces_and_processes_gives_the_same_bpe() -> None:
    script = (
        "import random; from lmkit.tokenizer import ByteLevelBPE, subword\n"
        "r = random.Random(1); t = ByteLevelBPE(400)\n"
        "t.train([' '.join(r.choices(['ab', 'ba', 'abc', 'cab', 'é'], k=300)) for _ in range(50)])"
        "\nprint(t.hash())"
    )
    smaller = script.replace("r = ", "subword.CHUNK = 50; r = ")
    environments = [(script, "1", "1"), (script, "2", "2"), (smaller, "3", "2")]
    hashes = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed, "RAYON_NUM_THREADS": threads},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for code, seed, threads in environments
    }
    assert len(hashes) == 1


def test_bpe_size_is_a_bound_and_all_bytes_are_there() -> None:
    tokenizer = ByteLevelBPE(vocabulary_size=257)
    tokenizer.train(["aa aa aa"])
    assert tokenizer.vocabulary_size == 257
    assert sorted(tokenizer.surfaces) == sorted([b"", *(bytes([n]) for n in range(256))])


def test_characters_unknown_are_counted() -> None:
    tokenizer = Characters(min_frequency=2)
    tokenizer.train(["aab", "ca"])
    assert tokenizer.vocabulary == ["a", "<eos>", "<unk>"]
    encoded = tokenizer.encode(["abc", ""])
    assert encoded.ids.tolist() == [0, 2, 2, 1, 1]
    assert encoded.num_unknown == 2
    assert tokenizer.decode(encoded.ids.tolist()) == "a<unk><unk>"


def characters() -> Tokenizer:
    return trained(Characters(min_frequency=2))


def with_unknown(tmp_path: Path) -> list[Tokenizer]:
    """One of each kind that has an unknown token, and of libraries that show it differently."""
    vocabulary = {"[UNK]": 0, "the": 1, "cat": 2, "▁": 3, "a": 4, "##s": 5, "[SEP]": 9}
    models = tokenizers.models
    wordpiece = tokenizers.Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    wordpiece.normalizer = tokenizers.normalizers.BertNormalizer()
    wordpiece.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    wordpiece.decoder = tokenizers.decoders.WordPiece()
    scores = [(token, -float(i)) for token, i in vocabulary.items()]
    unigram = tokenizers.Tokenizer(models.Unigram(scores, unk_id=0))
    unigram.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    unigram.decoder = tokenizers.decoders.Metaspace()
    word_level(tmp_path / "words.json", vocabulary)
    wordpiece.save(str(tmp_path / "wordpiece.json"))
    unigram.save(str(tmp_path / "unigram.json"))
    names = ("words", "wordpiece", "unigram")
    pretrained = [Pretrained(str(tmp_path / f"{name}.json")) for name in names]
    return [trained(Word()), trained(Word(lower=True)), characters(), *pretrained]


@pytest.fixture(scope="module")
def those_with_unknown(tmp_path_factory: pytest.TempPathFactory) -> list[Tokenizer]:
    return with_unknown(tmp_path_factory.mktemp("unknown"))


@given(text=texts.map(lambda text: text.replace("\r\n", "\n")).filter(lambda t: t.strip()))
def test_pieces_of_a_text_are_its_own_where_it_is_unknown(
    those_with_unknown: list[Tokenizer], text: str
) -> None:
    for tokenizer in those_with_unknown:
        read = Text.of(text, tokenizer)
        assert len(read.unknown) == read.num_unknown
        marked, own = tokenizer.pieces(read.tokens.tolist()), read.pieces(tokenizer)
        assert all(read.tokens[place] == tokenizer.unk_id for place in read.unknown)
        for place, (mark, piece) in enumerate(zip(marked, own, strict=True)):
            if place in read.unknown:
                assert piece.endswith(read.unknown[place])
                lowered = tokenizer.settings().get("lower")
                assert read.unknown[place] in (text.lower() if lowered else text)
            else:
                assert piece == mark
    word, lower, letters = those_with_unknown[:3]
    for tokenizer, given_text in ((word, text), (lower, text.lower())):
        words = [word for line in lines_of(given_text) for word in [*line.split(), "<eos>"]]
        joined = ""
        for word in words:
            space = "" if joined.endswith("\n") or not joined else " "
            joined += "\n" if word == "<eos>" else space + word
        assert "".join(Text.of(text, tokenizer).pieces(tokenizer)) == joined
    assert "".join(Text.of(text, letters).pieces(letters)) == text


def test_unknown_words_of_other_libraries(those_with_unknown: list[Tokenizer]) -> None:
    text = "The zebra's cats"
    expected = [
        [*("The", " zebra", " '", " s", " cats", "")],
        [*("the", " zebra", " '", " s", " cat", "s", "")],
        [*("", "The", " ", "zebr", "a", "'s", " ", "cat", "s", "")],
    ]
    own = [["The", "zebra", "'", "s", "cats"], ["zebra", "'", "s"], ["The", "zebr", "'s", "s"]]
    for tokenizer, pieces, unknown in zip(those_with_unknown[3:], expected, own, strict=True):
        read = Text.of(text, tokenizer)
        assert read.pieces(tokenizer) == pieces
        assert list(read.unknown.values()) == unknown


def test_lossless_is_found_out(tokenizer_json: Path, tmp_path: Path) -> None:
    assert Pretrained(str(tokenizer_json)).lossless
    state = json.loads(tokenizer_json.read_text())
    state["normalizer"] = {"type": "Lowercase"}
    (tmp_path / "tokenizer.json").write_text(json.dumps(state))
    assert not Pretrained(str(tmp_path)).lossless


def word_level(path: Path, vocabulary: dict[str, int], unk: str = "[UNK]") -> Path:
    library = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token=unk))
    library.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    library.save(str(path))
    return path


def test_pretrained_that_loses_newlines(tmp_path: Path) -> None:
    vocabulary = {"[UNK]": 0, "a": 1, "b": 2, "[SEP]": 9}
    tokenizer = Pretrained(str(word_level(tmp_path / "any name.json", vocabulary)))
    assert (tokenizer.eos, tokenizer.eos_id, tokenizer.unk_id) == ("[SEP]", 9, 0)
    assert tokenizer.vocabulary_size == 10  # ids have gaps
    encoded = tokenizer.encode(["\n\na x\n\nb\n", "\n", "b b"])
    assert encoded.ids.tolist() == [1, 0, 2, 9, 9, 2, 2, 9]
    assert encoded.document_ends.tolist() == [4, 5, 8]
    assert encoded.line_ends.tolist() == [2, 4, 5, 8]
    assert encoded.num_unknown == 1
    assert not tokenizer.lossless


def test_pretrained_without_a_closing_token(tmp_path: Path) -> None:
    path = word_level(tmp_path / "t.json", {"[UNK]": 0, "stop": 1})
    with pytest.raises(UserError) as caught:
        Pretrained(str(path))
    assert str(caught.value) == (
        f"tokenizer.path={path}: a token that closes a document is needed, none of <eos>, </s>, "
        "<|endoftext|>, <|end_of_text|>, [EOS], <EOS>, [SEP] is in the vocabulary; name one with "
        "tokenizer.eos=TOKEN (its special tokens: none)"
    )
    assert Pretrained(str(path), eos="stop").eos_id == 1


def test_pretrained_of_no_use(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    with pytest.raises(UserError, match=r"tokenizer\.path=.*t\.json: cannot read .*No such file"):
        Pretrained(str(path))
    word_level(path, {"a": 0, "[SEP]": 1})  # and no [UNK]
    with pytest.raises(UserError, match=r"t\.json: it cannot encode every text: WordLevel error"):
        Pretrained(str(path))
    path.write_text("{}")
    with pytest.raises(UserError, match=r"not a tokenizer\.json of the tokenizers library"):
        Pretrained(str(path))


@pytest.fixture(
    params=["word", "lower", "bpe", "characters", "few characters", "bytes", "pretrained"]
)
def any_tokenizer(request: pytest.FixtureRequest, tokenizer_json: Path) -> Tokenizer:
    make = {
        "word": lambda: trained(Word(vocabulary_size=5)),
        "lower": lambda: trained(Word(lower=True)),
        "bpe": bpe,
        "characters": lambda: trained(Characters(2)),
        "few characters": lambda: trained(Characters(vocabulary_size=6)),
        "bytes": Bytes,
        "pretrained": lambda: Pretrained(str(tokenizer_json)),
    }
    return make[request.param]()


@given(text=texts, by_line=st.booleans())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_spans_are_the_text_of_the_tokens(
    any_tokenizer: Tokenizer, text: str, by_line: bool
) -> None:
    encoded, spans = any_tokenizer.encode([text], by_line), any_tokenizer.spans(text, by_line)
    assert len(spans) == len(encoded.ids)
    assert all(0 <= first <= stop <= len(text) for first, stop in spans)
    assert spans == sorted(spans)
    covered = {i for first, stop in spans for i in range(first, stop)}
    assert all(i in covered or text[i].isspace() for i in range(len(text)))
    pieces = any_tokenizer.pieces(encoded.ids.tolist())
    for token, piece, (first, stop) in zip(encoded.ids, pieces, spans, strict=True):
        if isinstance(any_tokenizer, Pretrained):  # each byte of a character has all of it
            assert piece in text[first:stop] or "\ufffd" in text
        elif any_tokenizer.lossless:
            assert piece == text[first:stop]
        elif token not in (any_tokenizer.unk_id, any_tokenizer.eos_id):
            own = text[first:stop]
            assert (
                piece.strip()
                == (own.lower() if any_tokenizer.settings().get("lower") else own).strip()
            )


def test_a_tokenizer_of_ones_own_says_its_spans() -> None:
    class Doubled(Bytes):
        def pieces(self, ids: Sequence[int]) -> list[str]:
            return [2 * piece for piece in super().pieces(ids)]

    with pytest.raises(UserError) as caught:
        Doubled().spans("a")
    assert str(caught.value) == (
        "Doubled does not say which characters of a text its tokens stand for: give it a method "
        "spans(text, by_line)"
    )


@given(st.lists(st.sampled_from(["C", "Cl", "[nH]", "(", "\n", "%10"]), max_size=9))
def test_a_pattern_cuts_a_text_into_its_tokens(tokens: list[str]) -> None:
    vocabulary = ["$", "[nH]", "C", "Cl", "(", "\n", "%10"]
    tokenizer = Pattern(r"\[[^\]]*\]|%\d{2}|Br|Cl|[\s\S]", vocabulary, "$")
    text = "".join(tokens)
    encoded = tokenizer.encode([text, text])
    assert encoded.ids.tolist() == 2 * [*map(vocabulary.index, tokens), 0]
    assert encoded.document_ends.tolist() == [len(tokens) + 1, 2 * len(tokens) + 2]
    lines = [i + 1 for i, token in enumerate(tokens[:-1]) if token == "\n"] + [len(tokens) + 1]
    assert tokenizer.encode([text]).line_ends.tolist() == lines
    assert tokenizer.decode(encoded.ids.tolist()) == 2 * text
    assert [text[slice(*span)] for span in tokenizer.spans(text)] == [*tokens, ""]
    restored = Pattern._restore(tokenizer._state())
    assert restored.hash() == tokenizer.hash()


def test_saved_is_loaded(any_tokenizer: Tokenizer, tmp_path: Path) -> None:
    any_tokenizer.save(tmp_path)
    for path in (tmp_path, tmp_path / "tokenizer.json"):
        loaded = load_tokenizer(path)
        assert type(loaded) is type(any_tokenizer)
        assert loaded.hash() == any_tokenizer.hash()
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer.json"]
    for name in ("eos_id", "unk_id", "vocabulary_size", "lossless"):
        assert getattr(loaded, name) == getattr(any_tokenizer, name)
    if not isinstance(loaded, Pretrained):  # it was not told its path
        assert loaded.settings() == any_tokenizer.settings()
    texts = ["The cat <eos>\n dog", "🙂"]
    assert_same(loaded.encode(texts), any_tokenizer.encode(texts))


def test_ids_are_in_the_vocabulary(any_tokenizer: Tokenizer) -> None:
    encoded = any_tokenizer.encode(["any text, 你好 <unk>", "\n", ""])
    assert encoded.ids.dtype == np.uint32
    assert encoded.ids.max() < any_tokenizer.vocabulary_size
    assert (np.diff(encoded.document_ends, prepend=0) > 0).all()
    assert encoded.ids[encoded.document_ends - 1].tolist() == [any_tokenizer.eos_id] * 3


@pytest.mark.parametrize("make", [Word, Characters, ByteLevelBPE])
@pytest.mark.parametrize("size", [3, 7, 257, 258, 300, 10_000])
def test_a_vocabulary_has_at_most_as_many_ids_as_asked_for(make: Any, size: int) -> None:
    """All of them counted; exactly as many where the text has what to fill them with."""
    texts = [f"word{n} {chr(0x4E00 + n)} words" for n in range(1500) for _ in range(3)]
    if make is ByteLevelBPE and size < 257:
        return
    tokenizer = make(vocabulary_size=size)
    tokenizer.train(texts)
    most = {Word: 3_003, Characters: 1_518, ByteLevelBPE: 10_000}[make]
    if make is not ByteLevelBPE or size < 10_000:
        assert tokenizer.vocabulary_size == min(size, most)
    assert tokenizer.vocabulary_size <= size
    encoded = tokenizer.encode(["words word1 \u4e01 zebra", "\n"])
    assert set(encoded.ids.tolist()) <= set(range(tokenizer.vocabulary_size))
    assert tokenizer.settings()["vocabulary_size"] == size


SAVED = """{"format": "lmkit tokenizer 1", "name": "word", "settings": {"min_frequency": 1, \
"max_size": 4, "lower": false}, "vocabulary": ["<eos>", "a", "b", "<unk>"]}"""


def test_a_tokenizer_saved_before_the_size_had_one_name_is_the_same(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(SAVED)
    loaded = load_tokenizer(tmp_path)
    assert loaded.hash() == hashlib.sha256(SAVED.encode()).hexdigest()
    assert loaded.settings()["vocabulary_size"] == 4
    again = Word(vocabulary_size=4)
    again.learn({"a": 3, "b": 1, "c": 1, "<eos>": 4})
    assert again.hash() == loaded.hash()
    saved = SAVED.replace("word", "characters").replace(', "max_size": 4, "lower": false', "")
    (tmp_path / "tokenizer.json").write_text(saved)
    assert load_tokenizer(tmp_path).hash() == hashlib.sha256(saved.encode()).hexdigest()


def test_hash_tells_settings_and_vocabularies_apart() -> None:
    other = Word()
    other.train(["others"])
    tokenizers = [trained(Word()), trained(Word(lower=True)), other, trained(Characters()), Bytes()]
    assert len({tokenizer.hash() for tokenizer in tokenizers}) == 5
    assert trained(Word()).hash() == tokenizers[0].hash()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "{path}: cannot read the tokenizer: No such file or directory"),
        ("{", "{path}: the tokenizer is damaged: not JSON: Expecting property name enclosed in "
              "double quotes: line 1 column 2 (char 1)"),
        ("{}", '{path}: not a tokenizer that lmkit saved (no "format": "lmkit tokenizer 1"); '
               "another library's tokenizer.json is used with tokenizer=pretrained "
               "tokenizer.path=FILE"),
        ('{"format": "lmkit tokenizer 1", "name": "os.system"}',
         "{path}: unknown tokenizer 'os.system', expected one of word, bpe, characters, bytes, "
         "pretrained, sentencepiece, pattern"),
        ('{"format": "lmkit tokenizer 1", "name": "word", "settings": {}}',
         "{path}: the tokenizer is damaged: KeyError('vocabulary')"),
        ('{"format": "lmkit tokenizer 1", "name": "word", "settings": {}, "vocabulary": ["a"]}',
         "{path}: the tokenizer is damaged: ValueError(\"'<eos>' is not in list\")"),
    ],
)  # fmt: skip
def test_damaged_files(tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "tokenizer.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError) as caught:
        load_tokenizer(path)
    assert str(caught.value) == message.format(path=path)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Word(min_frequency=0), "tokenizer.min_frequency=0: must be at least 1 "
                                        "(every word of the text occurs once)"),
        (lambda: Word(vocabulary_size=2), "tokenizer.vocabulary_size=2: must be at least 3 "
                                          "(<eos>, <unk> and one word)"),
        (lambda: Characters(vocabulary_size=2), "tokenizer.vocabulary_size=2: must be at least 3 "
                                                "(<eos>, <unk> and one character)"),
        (lambda: ByteLevelBPE(256), "tokenizer.vocabulary_size=256: must be at least 257 "
                                    "(all bytes and <eos>)"),
    ],
)  # fmt: skip
def test_impossible_settings(make: partial[Tokenizer], message: str) -> None:
    with pytest.raises(UserError) as caught:
        make()
    assert str(caught.value) == message


def test_import_is_cheap() -> None:
    code = (
        "import sys, lmkit.tokenizer, lmkit.store\n"
        "print({'torch', 'pyarrow', 'tokenizers', 'rich'} & set(sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "set()\n"


OWN = """
from lmkit.tokenizer import Word

print("imported")


class Shouted(Word):
    def count(self, texts):
        return super().count(text.upper() for text in texts)

    def encode(self, texts, by_line=False):
        return super().encode([text.upper() for text in texts], by_line)
"""


@pytest.fixture
def shouted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Tokenizer]]:
    """A tokenizer of a user's own, which is derived from lmkit's, of a package that is allowed."""
    (tmp_path / "own_tokenizers.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("LMKIT_ALLOW", "own_tokenizers")
    yield importlib.import_module("own_tokenizers").Shouted
    del sys.modules["own_tokenizers"]


def test_a_derived_tokenizer_is_saved_and_prepared_as_itself(
    shouted: type[Tokenizer], tmp_path: Path
) -> None:
    (tmp_path / "text.txt").write_text("the cat\n\nThe CAT\n\na dog\n")
    source = Files(str(tmp_path / "text.txt"), unit="paragraph", valid_fraction=0, test_fraction=0)
    plain = prepare(source, Word(), tmp_path / "cache").tokenizer
    own = prepare(source, shouted(), tmp_path / "cache").tokenizer
    assert (plain.vocabulary_size, own.vocabulary_size) == (8, 6)
    assert own.vocabulary[1:5] == ["THE", "CAT", "A", "DOG"]
    own.save(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert type(loaded) is shouted
    assert loaded.hash() == own.hash() != plain.hash()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "own_tokenizers.Shouted",
            "unknown tokenizer 'own_tokenizers.Shouted', expected one of word, bpe, characters, "
            "bytes, pretrained, sentencepiece, pattern; if own_tokenizers is a package that you "
            "trust: export LMKIT_ALLOW=mine,own_tokenizers",
        ),
        ("mine.Word", "mine.Word is not a class of mine"),
        ("mine.Other", "mine.Other is no tokenizer"),
        ("torch.nn.Linear", "unknown tokenizer 'torch.nn.Linear', expected one of word, bpe, "
                            "characters, bytes, pretrained, sentencepiece, pattern"),
    ],
)  # fmt: skip
def test_a_saved_tokenizer_names_a_class_of_an_allowed_package_alone(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    message: str,
) -> None:
    (tmp_path / "own_tokenizers.py").write_text(OWN)
    mine = types.ModuleType("mine")
    mine.Word, mine.Other = Word, type("Other", (), {"__module__": "mine"})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mine", mine)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("LMKIT_ALLOW", "mine")
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps({"format": "lmkit tokenizer 1", "name": name}))
    with pytest.raises(UserError) as caught:
        load_tokenizer(path)
    assert str(caught.value) == f"{path}: {message}"
    assert not capsys.readouterr().out
