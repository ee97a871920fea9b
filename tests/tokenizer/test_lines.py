"""Tokenizers of other libraries: the ids they give, and lines that know nothing of each other."""

import contextlib
import copy
import json
import logging
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, trainers

from lmkit.corpus import Files
from lmkit.errors import UserError
from lmkit.inference import Text
from lmkit.store import Store, prepare
from lmkit.tokenizer import ByteLevelBPE, Pretrained, Word, load_tokenizer

TRAINING = [
    "the old cat\nfinds the boat\n",
    "The cat's naïve 12 345\tx\n\n\nend  .",
    "你好 İ é <x>",
]
SPECIALS = ["</s>", "<unk>"]


def trained(normalizer: Any, splitter: Any, decoder: Any, *extra: str, **model: Any) -> Any:
    library = tokenizers.Tokenizer(models.BPE(**({"unk_token": "<unk>"} | model)))
    for part, value in (
        *(("normalizer", normalizer), ("pre_tokenizer", splitter), ("decoder", decoder)),
    ):
        if value is not None:
            setattr(library, part, value)
    trainer = trainers.BpeTrainer(
        vocab_size=120 + len(extra), special_tokens=[*SPECIALS, *extra], show_progress=False
    )
    library.train_from_iterator(TRAINING * 3, trainer)
    return library


def of_the_library(kind: Callable[..., Any], **settings: Any) -> Any:
    library = kind(**settings)
    named = {} if kind is tokenizers.BertWordPieceTokenizer else {"special_tokens": SPECIALS}
    if kind is tokenizers.SentencePieceUnigramTokenizer:
        named["unk_token"] = "<unk>"
    library.train_from_iterator(TRAINING * 3, vocab_size=120, show_progress=False, **named)
    return library


def with_added_tokens() -> Any:
    library = tokenizers.Tokenizer(
        models.WordLevel({"<unk>": 0, "</s>": 1, "the": 2, "cat": 3}, unk_token="<unk>")
    )
    library.pre_tokenizer = pre_tokenizers.Whitespace()
    library.add_tokens([AddedToken("<x>", lstrip=True, rstrip=True)])
    library.add_tokens([AddedToken("cat", single_word=True, normalized=False)])
    library.post_processor = tokenizers.processors.TemplateProcessing(
        single="</s> $A </s>", special_tokens=[("</s>", 1)]
    )
    library.enable_truncation(2)
    library.enable_padding(length=9, pad_id=1)
    return library


BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
KINDS: dict[str, Callable[[], Any]] = {
    "unigram": lambda: of_the_library(tokenizers.SentencePieceUnigramTokenizer),
    "bpe of sentencepiece": lambda: of_the_library(tokenizers.SentencePieceBPETokenizer),
    "wordpiece": lambda: of_the_library(tokenizers.BertWordPieceTokenizer),
    "ends of words": lambda: of_the_library(tokenizers.CharBPETokenizer),
    "bytes with a space before": lambda: of_the_library(
        tokenizers.ByteLevelBPETokenizer, add_prefix_space=True
    ),
    "bytes without a pattern": lambda: trained(
        None,
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        decoders.ByteLevel(),
        *sorted(pre_tokenizers.ByteLevel.alphabet()),
        unk_token=None,
    ),
    "bytes where it knows nothing": lambda: trained(
        normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]),
        None,
        decoders.Sequence(
            [
                *(decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()),
                decoders.Strip(" ", 1, 0),
            ]
        ),
        *BYTES,
        byte_fallback=True,
        fuse_unk=True,
    ),
    "normalizers that change lengths": lambda: trained(
        normalizers.Sequence(
            [
                *(normalizers.NFD(), normalizers.StripAccents(), normalizers.Lowercase()),
                *(normalizers.Replace("cat", "a longer word"), normalizers.Strip()),
            ]
        ),
        pre_tokenizers.Sequence(
            [
                *(pre_tokenizers.Punctuation(), pre_tokenizers.Digits(individual_digits=True)),
                pre_tokenizers.WhitespaceSplit(),
            ]
        ),
        None,
    ),
    "split with blanks": lambda: trained(
        normalizers.NFKC(),
        pre_tokenizers.Split(Regex(r"\s+\w*|\w+"), "isolated"),
        decoders.Fuse(),
    ),
    "added tokens": with_added_tokens,
}
ATOMS = [
    *("the", "cat", " ", "  ", "\n", "\n", "\n\n", "\r\n", "\x85", "\u2028", "\x00", "\u0301"),
    *("é", "İ", "ﬁ", "12", "'s", "<x>", "</s>", "<unk>", "你好", "🙂", "\t", "x", "."),
]
texts = st.lists(st.sampled_from(ATOMS), max_size=14).map("".join)


@pytest.fixture(scope="module", params=KINDS)
def pretrained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = tmp_path_factory.mktemp("library") / "tokenizer.json"
    KINDS[request.param]().save(str(path))
    eos = "[SEP]" if request.param == "wordpiece" else "</s>"
    return Pretrained(str(path), eos)


@pytest.fixture(scope="module")
def bpe() -> ByteLevelBPE:
    tokenizer = ByteLevelBPE(300, min_frequency=1)
    tokenizer.train(["a\n\n\nb  \n  c\n\n\n\n  \n  "] * 9)
    return tokenizer


def own_ids(tokenizer: Any, text: str) -> list[int]:
    """What the library gives for a text, with nothing around it."""
    library = tokenizers.Tokenizer.from_str(tokenizer._library.to_str())
    library.no_truncation()
    library.no_padding()
    library.encode_special_tokens = True
    ids: list[int] = library.encode(text, add_special_tokens=False).ids
    return ids


def slow(tokenizer: Any, texts: Sequence[str], by_line: bool) -> tuple[list[int], ...]:
    """ids, ends of documents and, line by line, ends of lines."""
    ids: list[int] = []
    document_ends, line_ends = [], []
    for text in texts:
        lines = text.split("\n") if by_line else [text]
        for place, line in enumerate(lines):
            before = len(ids)
            ids += own_ids(tokenizer, line)
            ids += tokenizer.newline if place < len(lines) - 1 else []
            if len(ids) > before:
                line_ends.append(len(ids))
        ids.append(tokenizer.eos_id)
        begin = document_ends[-1] if document_ends else 0
        if line_ends and line_ends[-1] == len(ids) - 1 > begin:
            line_ends.pop()
        line_ends.append(len(ids))
        document_ends.append(len(ids))
    return ids, document_ends, line_ends


@given(st.lists(texts, min_size=1, max_size=4))
@settings(max_examples=25, deadline=None)
def test_ids_are_the_librarys_own(pretrained: Pretrained, documents: list[str]) -> None:
    encoded = pretrained.encode(documents)
    ids, document_ends, _ = slow(pretrained, documents, by_line=False)
    assert encoded.ids.tolist() == ids
    assert encoded.document_ends.tolist() == document_ends
    assert (np.diff(encoded.line_ends, prepend=0) > 0).all()
    assert set(document_ends) <= set(encoded.line_ends.tolist())


@given(st.lists(texts, min_size=1, max_size=4))
@settings(max_examples=25, deadline=None)
def test_lines_are_encoded_each_by_itself(pretrained: Pretrained, documents: list[str]) -> None:
    encoded = pretrained.encode(documents, by_line=True)
    found = (encoded.ids, encoded.document_ends, encoded.line_ends)
    assert tuple(each.tolist() for each in found) == slow(pretrained, documents, by_line=True)
    text = documents[0]
    if pretrained.unk_id is not None:
        places = pretrained.unknown(text, by_line=True)
        alone = pretrained.encode([text], by_line=True)
        assert sorted(places) == np.flatnonzero(alone.ids == pretrained.unk_id).tolist()


@given(texts, st.booleans())
@settings(max_examples=50, deadline=None)
def test_spans_are_the_librarys_offsets(pretrained: Pretrained, text: str, by_line: bool) -> None:
    ids, spans = pretrained.encode([text], by_line).ids.tolist(), pretrained.spans(text, by_line)
    assert len(spans) == len(ids)
    assert all(0 <= first <= stop <= len(text) for first, stop in spans)
    places = pretrained.unknown(text, by_line)
    assert {place: text[slice(*spans[place])] for place in places} == places


@given(st.lists(st.sampled_from(["", " ", "  ", "a", "b  ", "  c"]), min_size=1, max_size=9))
@settings(max_examples=200, deadline=None)
def test_lines_of_the_own_bpe_are_encoded_each_by_itself(
    bpe: ByteLevelBPE, lines: list[str]
) -> None:
    text = "\n".join(lines)
    encoded = bpe.encode([text], by_line=True)
    found = (encoded.ids, encoded.document_ends, encoded.line_ends)
    assert tuple(each.tolist() for each in found) == slow(bpe, [text], by_line=True)
    assert bpe.decode(encoded.ids.tolist()) == "".join(bpe.pieces(encoded.ids.tolist())) == text


@given(st.text("the cat", min_size=1, max_size=9).filter(str.strip), st.lists(texts, max_size=3))
@settings(max_examples=20, deadline=None)
def test_equal_lines_have_equal_ids_whatever_is_around(
    pretrained: Pretrained, line: str, others: list[str]
) -> None:
    text = "\n".join([line, *(each for other in others for each in (other, line))])
    encoded = pretrained.encode([text], by_line=True)
    rows = [row.tolist() for row in np.split(encoded.ids, encoded.line_ends[:-1])]
    alone = own_ids(pretrained, line)
    wanted = [[*alone, *pretrained.newline], [*alone, pretrained.eos_id]]
    lines = sum(each == line for other in others for each in other.split("\n")) + len(others) + 1
    assert sum(row in wanted for row in rows) >= (lines if alone else 0)


@pytest.mark.parametrize("kind", ["unigram", "bytes with a space before"])
def test_a_line_ends_before_a_word_whose_token_begins_with_the_newline(
    kind: str, tmp_path: Path
) -> None:
    KINDS[kind]().save(str(tmp_path / "tokenizer.json"))
    tokenizer = Pretrained(str(tmp_path), "</s>")
    text = "the cat\nthe boat\n\n  end\n"
    encoded = tokenizer.encode([text])
    encoding = tokenizer._library.encode(text, add_special_tokens=False)
    rows = np.split(np.arange(len(encoding.ids)), encoded.line_ends[:-1])
    for row, begin, stop in zip(rows[:2], (0, 8), (8, 17), strict=True):
        words = [k for k in row if text[slice(*encoding.offsets[k])].strip()]
        assert min(encoding.offsets[k][0] for k in words) >= begin - 1
        assert max(encoding.offsets[k][1] for k in words) <= stop


def test_newlines_are_kept_where_the_tokenizer_has_them(
    pretrained: Pretrained, bpe: ByteLevelBPE
) -> None:
    for tokenizer in (pretrained, bpe):
        found = tokenizer.decode(tokenizer.newline)
        assert found.strip(" ") == "\n" if tokenizer.newline else found == ""
        assert bool(tokenizer.newline) == ("\n" in tokenizer.decode(tokenizer.encode_text("a\na")))


def test_a_text_has_the_pieces_of_its_lines(pretrained: Pretrained) -> None:
    for by_line in (False, True):
        read = Text.of("the cat\n\nthe 你 cat\n", pretrained, by_line)
        assert len(read.pieces(pretrained)) == read.num_tokens
        assert len(read.unknown) == read.num_unknown


def test_lines_have_a_store_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    for name, text in (("train", "a\n\n\nb  \n  c\n"), ("valid", "b\n\na")):
        (tmp_path / "text" / f"{name}.txt").write_text(text * 20)
    source = Files(str(tmp_path / "text"), test_fraction=0)
    whole, lines, words = (
        prepare(source, tokenizer, tmp_path / "cache", by_line=by_line)
        for tokenizer, by_line in (
            *((ByteLevelBPE(270), False), (ByteLevelBPE(270), True), (Word(), True)),
        )
    )
    assert whole.tokenizer.hash() == lines.tokenizer.hash()
    assert whole.directory != lines.directory
    for prepared, by_line in ((whole, False), (lines, True)):
        for split, store in prepared.stores.items():
            encoded = prepared.tokenizer.encode([source_text(source, split)], by_line)
            assert store.tokens.tolist() == encoded.ids.tolist()
            assert store.line_ends.tolist() == encoded.line_ends.tolist()
            assert store.by_line == by_line
    assert lines.stores["train"].num_lines == 100 > whole.stores["train"].num_lines
    assert not words.stores["train"].by_line
    assert words.directory == prepare(source, Word(), tmp_path / "cache").directory
    for by_line in (False, True):
        place = tmp_path / f"store {by_line}"
        made = prepare(source, ByteLevelBPE(270), tmp_path, by_line=by_line, store=place)
        (place / "data.json").write_text(json.dumps(made.describe()))
        opened = prepare(Store(str(place)), None, tmp_path, by_line=by_line)
        assert opened.hash == made.hash
        with pytest.raises(UserError) as caught:
            prepare(Store(str(place)), None, tmp_path, by_line=not by_line)
        kept = "without" if by_line else "with"
        how = (
            "line by line, but only data.protocol=sentence reads lines"
            if by_line
            else "as whole documents, but data.protocol=sentence reads lines"
        )
        assert str(caught.value) == (
            f"{place / 'train'} was encoded {how}: the tokens of a line of the bpe tokenizer "
            f"depend on what is around it; prepare the text again {kept} "
            "data.protocol=sentence"
        )


def source_text(source: Files, split: str) -> str:
    (document,) = source.documents(split)
    return document.text


def changed(path: Path, **keys: Any) -> Path:
    state = json.loads(KINDS["added tokens"]().to_str())
    for key, value in keys.items():
        place = state["model"] if key in state["model"] else state
        place[key] = value
    path.write_text(json.dumps(state))
    return path


PRECOMPILED = {"type": "Precompiled", "precompiled_charsmap": "AAAA"}


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"normalizer": PRECOMPILED},
            "not a tokenizer.json of the tokenizers library: Precompiled: "
            'Error("Cannot parse precompiled_charsmap", line: 0, column: 0)',
        ),
        (
            {"vocab": {"<unk>": 0, "</s>": 1, "the": 1}, "added_tokens": []},
            "'</s>' and 'the' have one id, 1",
        ),
        (
            {"vocab": {"<unk>": 0, "</s>": 1, "the": 4_000_000_000}, "added_tokens": []},
            "its highest id is 4,000,000,000 for 3 tokens, and each id takes a row of the model: "
            "number them anew",
        ),
    ],
)
def test_what_panics_or_would_abort_is_a_mistake_in_the_file(
    keys: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = changed(tmp_path / "t.json", **keys)
    with pytest.raises(UserError) as caught:
        Pretrained(str(path))
    assert str(caught.value) in (
        f"tokenizer.path={path}: {message}",
        f"tokenizer.path={path}: {message}".replace("'</s>' and 'the'", "'the' and '</s>'"),
    )
    saved = {"format": "lmkit tokenizer 1", "name": "pretrained", "eos": "</s>"}
    (tmp_path / "tokenizer.json").write_text(
        json.dumps(saved | {"tokenizer": json.loads(path.read_text())})
    )
    with pytest.raises(UserError, match=r"tokenizer\.json: the tokenizer is damaged: "):
        load_tokenizer(tmp_path)


def test_a_vocabulary_beyond_memory_is_refused() -> None:
    with pytest.raises(UserError) as caught:
        ByteLevelBPE(vocabulary_size=1 << 40)
    assert str(caught.value) == "tokenizer.vocabulary_size=1099511627776: at most 16,777,216"
    rare = ByteLevelBPE(257, min_frequency=1 << 80)
    rare.train(["aa aa"])
    assert rare.vocabulary_size == 257


def test_a_tokenizer_that_draws_is_told_not_to(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    library = trained(None, pre_tokenizers.WhitespaceSplit(), None, dropout=0.5)
    library.save(str(tmp_path / "tokenizer.json"))
    with caplog.at_level(logging.WARNING):
        tokenizer = Pretrained(str(tmp_path))
    assert [record.getMessage() for record in caplog.records] == [
        f"tokenizer.path={tmp_path}: encoded without the dropout of its model, with which no text "
        "has the same tokens twice"
    ]
    assert len({tuple(tokenizer.encode_text("the cat finds the boat")) for _ in range(20)}) == 1


VALUES: list[Any] = [
    *(None, True, 0, -1, 2**32 - 1, 2**32, 10**20, -1.5, "", "a", "\n", [], {}, [[]], ["a"]),
    *({"Regex": "("}, {"Regex": ""}, {"String": ""}, PRECOMPILED),
]


def places_in(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value[:4])
    found = [at] if at else []
    for key, each in list(inner)[:20]:
        found += places_in(each, (*at, key)) if isinstance(each, dict | list) else [(*at, key)]
    return found


@contextlib.contextmanager
def suppress_mistakes(directory: Path) -> Iterator[None]:
    with contextlib.suppress(UserError):
        try:
            yield
        except UserError as error:
            assert str(error).startswith(f"tokenizer.path={directory}: ")  # noqa: PT017
            raise


@pytest.mark.parametrize("seed", range(4))
def test_a_changed_file_is_read_or_a_mistake(
    pretrained: Pretrained, seed: int, tmp_path: Path
) -> None:
    draw = random.Random(seed)
    whole = json.loads(pretrained._library.to_str())
    for _ in range(12):
        state = copy.deepcopy(whole)
        group = draw.choice(list(state))
        *way, last = draw.choice([place for place in places_in(state) if place[0] == group])
        inner = state
        for key in way:
            inner = inner[key]
        inner[last] = draw.choice(VALUES)
        (tmp_path / "tokenizer.json").write_text(json.dumps(state))
        with suppress_mistakes(tmp_path):
            tokenizer = Pretrained(str(tmp_path))
            for by_line in (False, True):
                encoded = tokenizer.encode(["the cat\n\nİ </s> 12\x00", "", "\n"], by_line)
                tokenizer.pieces(encoded.ids.tolist())
                assert encoded.ids.max() < tokenizer.vocabulary_size
                assert encoded.line_ends[-1] == encoded.document_ends[-1] == len(encoded.ids)
            tokenizer.save(tmp_path)
            assert load_tokenizer(tmp_path).hash() == tokenizer.hash()
