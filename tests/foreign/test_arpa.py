"""ARPA files of other programs: what is read, and what is wrong in which line."""

import math

import pytest
from trained_run import warned

from lmkit.errors import UserError
from lmkit.foreign import arpa, is_arpa, read_arpa

# As SRILM writes: a heading of its own, an order without all backoff weights, no <unk>.
SRILM = """
written by hand
\\data\\
ngram 1=4
ngram 2=3

\\1-grams:
-99\t<s>\t-0.5
-0.7 </s>
-0.4\ta\t-0.25
-0.6\tb

\\2-grams:
-0.1\t<s> a
-0.2\ta b
-0.3\tb </s>

\\end\\
"""


def written(tmp_path, text):
    path = tmp_path / "model.arpa"
    path.write_text(text)
    return path


def test_a_file_of_srilm(tmp_path, caplog):
    path = written(tmp_path, SRILM)
    assert is_arpa(path)
    found = read_arpa(path)
    assert (found.order, found.sizes) == (2, [4, 3])
    assert found.tokenizer.vocabulary == ["<eos>", "a", "b", "<unk>"]
    log10 = {name: tensor / math.log(10) for name, tensor in found.weights.items()}
    assert log10["head.log_prob_1"].tolist() == pytest.approx([-0.7, -0.4, -0.6, -100])
    assert log10["head.log_backoff_1"].tolist() == pytest.approx([0, -0.25, 0, 0, -0.5])
    assert found.weights["head.keys_2"].tolist() == [1 * 5 + 2, 2 * 5 + 0, 4 * 5 + 1]
    assert log10["head.log_prob_2"].tolist() == pytest.approx([-0.2, -0.3, -0.1])
    assert int(found.weights["model.start"]) == 0
    (warning,) = warned(caplog)
    assert warning.endswith("has no <unk>: unknown words have log10 p = -100, as in KenLM")


@pytest.mark.parametrize(
    ("was", "now", "wrong"),
    [
        ("ngram 2=3", "ngram 2=4", "line 18: 3 2-grams, where the file announces 4"),
        ("ngram 2=3", "ngram 3=3", "line 5: expected the count of order 2"),
        ("-0.2\ta b", "-0.2\ta c", "line 15: the word c, which is not among the 1-grams"),
        ("-0.2\ta b", "-0.2\ta b c d", "line 15: expected a logarithm, 2 words and a backoff"),
        ("-0.2\ta b", "x\ta b", "line 15: expected a number before and after the words"),
        ("-0.2\ta b", "nan\ta b", "line 18: the 2-grams have numbers that are not finite"),
        ("-0.2\ta b", "-0.2\tb </s>", "has one of its 2-grams twice"),
        ("-0.6\tb", "-0.6\ta", "line 11: the word a a second time"),
        ("\\2-grams:", "\\3-grams:", "line 13: expected \\2-grams:"),
        ("\\end\\\n", "", "line 18: the file ends here, without \\end\\: it is not whole"),
        ("</s>", "</S>", "has no </s>, the word that ends a sentence"),
        ("\tb\n", "\t<eos>\n", "has both </s> and <eos>, which are one token here"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(was, now, wrong, tmp_path):
    path = written(tmp_path, SRILM.replace(was, now))
    if now == "\t<eos>\n":
        path.write_text(path.read_text().replace("a b", "a a").replace("b </s>", "a </s>"))
    with pytest.raises(UserError) as raised:
        read_arpa(path)
    assert wrong in str(raised.value)
    assert str(path) in str(raised.value)


def test_an_ngram_without_its_beginning_is_refused(tmp_path):
    text = SRILM.replace("ngram 2=3", "ngram 2=3\nngram 3=1")
    text = text.replace("\\end\\", "\\3-grams:\n-0.1\ta a b\n\n\\end\\")
    with pytest.raises(UserError, match="the 3-gram 1 begins with 2 words that are no 2-gram"):
        read_arpa(written(tmp_path, text))


def test_a_beginning_within_a_sentence_is_left_out(tmp_path, caplog):
    found = read_arpa(written(tmp_path, SRILM.replace("-0.2\ta b", "-0.2\ta <s>")))
    assert len(found.weights["head.keys_2"]) == 2
    assert "1 2-grams have <s> after another word" in warned(caplog)[-1]


def test_a_line_that_is_too_long_is_refused(tmp_path, monkeypatch):
    path = written(tmp_path, SRILM)
    longest = max(len(line) for line in path.read_bytes().splitlines(keepends=True))
    monkeypatch.setattr(arpa, "MAX_LINE", longest)
    assert read_arpa(path).sizes == [4, 3]
    monkeypatch.setattr(arpa, "MAX_LINE", longest - 1)
    with pytest.raises(UserError) as error:
        read_arpa(path)
    assert str(error.value) == f"{path}, line 2: more than {longest - 1} bytes"


def test_a_heading_may_be_long_but_not_of_any_length(tmp_path, monkeypatch):
    path = written(tmp_path, SRILM)
    upto = len(SRILM[: SRILM.index("data") + 4])
    for seen in (upto, upto - 1):
        monkeypatch.setattr(arpa, "SEEN", seen)
        assert is_arpa(path) == (seen == upto)


@pytest.mark.parametrize("content", [b"PK\x03\x04", b"", b"\x1f\x8b damaged", b"words of a text"])
def test_other_files_are_none(content, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(content)
    assert not is_arpa(path)


def test_a_compressed_file_that_is_cut_is_damaged(tmp_path):
    import gzip

    path = tmp_path / "model.arpa.gz"
    lines = SRILM.replace("\\end\\", "-0.2\ta a\n" * 20_000)
    path.write_bytes(gzip.compress(lines.encode())[:-40])
    with pytest.raises(UserError, match="is damaged: it cannot be decompressed"):
        read_arpa(path)
