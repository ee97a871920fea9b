"""The exported tokenizers give lmkit's ids, and give back lmkit's text."""

from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from lmkit.errors import UserError
from lmkit.export.fast_tokenizer import eos_token, fast_tokenizer, unk_token
from lmkit.tokenizer import ByteLevelBPE, Bytes, Characters, Pattern, Pretrained, Tokenizer, Word

TRAINING = ["the cat sat on the mat\n\nthe dog's  naïve 你好 🙂\n", "x\ty\r\nthe end"]
ATOMS = [
    *("the", "cat", " ", "  ", "\n", "\n\n", "\t", "\r", "\x0b", "\x1c", "\x1f", "\x85", "\u2003"),
    *("\u2028", "\u200b", "🙂", "é", "e\u0301", "'s", "0", "C", "<unk>", "\x00"),
]
texts = st.lists(st.sampled_from(ATOMS), max_size=14).map("".join) | st.text(max_size=20)


def wordpiece(path: Path) -> Path:
    """A tokenizer of another library, which puts tokens around a text, and lowers its case."""
    words = ["[UNK]", "the", "cat", "##s", "a", "##a", "[SEP]", "[CLS]"]
    model = tokenizers.models.WordPiece({w: i for i, w in enumerate(words)}, unk_token="[UNK]")
    library = tokenizers.Tokenizer(model)
    library.normalizer = tokenizers.normalizers.BertNormalizer()
    library.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    library.decoder = tokenizers.decoders.WordPiece()
    library.post_processor = tokenizers.processors.BertProcessing(("[SEP]", 6), ("[CLS]", 7))
    library.save(str(path))
    return path


def lines_of_characters() -> Characters:
    return Characters.of(["<unk>", "\n", "t", "h", "e", " ", "é"])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    path = wordpiece(tmp_path_factory.mktemp("library") / "tokenizer.json")
    trained: list[Tokenizer] = [
        *(Word(), Word(lower=True, min_frequency=2), Characters(), ByteLevelBPE(300))
    ]
    for tokenizer in trained:
        tokenizer.train(TRAINING)
    names = ("word", "lower", "characters", "bpe", "bytes", "lines", "pretrained")
    others = (Bytes(), lines_of_characters(), Pretrained(str(path)))
    return dict(zip(names, (*trained, *others), strict=True))


KINDS = ("word", "lower", "characters", "bpe", "bytes", "lines", "pretrained")


@pytest.mark.parametrize("kind", KINDS)
@given(text=texts)
@settings(deadline=None)
def test_ids_and_text_are_lmkits(made: dict[str, Tokenizer], kind: str, text: str) -> None:
    tokenizer = made[kind]
    if kind == "lower" and text.lower() != "".join(c.lower() for c in text):
        return  # a sigma at the end of a word: the library lowers each character by itself
    fast = fast_tokenizer(tokenizer)
    ids = tokenizer.encode_text(text)
    encoding = fast.encode(text, add_special_tokens=True)
    assert encoding.ids == ids
    assert all(0 <= first <= stop <= len(text) for first, stop in encoding.offsets)
    decoded = fast.decode(ids, skip_special_tokens=False)
    if kind != "pretrained":  # whose decoder differs at blanks
        assert decoded == tokenizer.decode(ids)


def test_what_the_library_calls_the_tokens(made: dict[str, Tokenizer]) -> None:
    named = {kind: (eos_token(made[kind]), unk_token(made[kind])) for kind in KINDS}
    assert named == {
        "word": ("<eos>", "<unk>"),
        "lower": ("<eos>", "<unk>"),
        "characters": ("<eos>", "<unk>"),
        "bpe": ("<eos>", None),
        "bytes": ("<eos>", None),
        "lines": ("\n", "<unk>"),
        "pretrained": ("[SEP]", "[UNK]"),
    }
    for kind, (eos, _) in named.items():
        fast = fast_tokenizer(made[kind])
        assert fast.encode(eos).ids == [made[kind].eos_id]
        assert fast.get_vocab_size() == made[kind].vocabulary_size
    assert fast_tokenizer(made["word"]).encode("<eos>the cat").tokens == ["<eos>", "the", "cat"]


def test_a_pattern_is_cut_alike() -> None:
    tokenizer = Pattern(r"\[[^\]]*\]|Br|Cl|[\s\S]", ["$", "C", "Cl", "[nH]"], "$")
    encoding = fast_tokenizer(tokenizer).encode("CCl[nH]C")
    assert encoding.ids == tokenizer.encode_text("CCl[nH]C") == [1, 2, 3, 1]
    assert fast_tokenizer(tokenizer).decode(encoding.ids) == "CCl[nH]C"


def test_a_class_of_ones_own_is_refused() -> None:
    class Own(Bytes):
        pass

    with pytest.raises(UserError, match="tokenizer=Own has no tokenizer"):
        fast_tokenizer(Own())
