"""ARPA files: written, read back to the last bit, and read by a parser of the tests' own."""

import math

import pytest
import torch
from counted_run import state_of, trained
from trained_run import load, make_run, warned

from lmkit.commands.export import export
from lmkit.errors import UserError
from lmkit.export import arpa, write_arpa
from lmkit.foreign import is_arpa, read_arpa

TEXT = "the cat sat .\nthe dog sat on the cat .\n\na dog ran .\nthe cat ran .\n"
ONE_LINE = "a b a\n"


def parsed(path):
    """By each n-gram's words: log10 p, and log10 of the backoff weight."""
    found, sizes = {}, {}
    for line in path.read_text().splitlines():
        if line.startswith("ngram "):
            order, _, size = line[6:].partition("=")
            sizes[int(order)] = int(size)
        elif "\t" in line:
            prob, words, *backoff = line.split("\t")
            found[tuple(words.split(" "))] = (float(prob), float(backoff[0]) if backoff else 0.0)
    for order, size in sizes.items():
        assert size == sum(len(words) == order for words in found)
    return found


def score(model, words):
    """log10 p of the last word after the others, by the rule of backoff."""
    if words in model:
        return model[words][0]
    return model.get(words[:-1], (0.0, 0.0))[1] + score(model, words[1:])


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_another_program_computes_the_same_scores(order, tmp_path):
    model = trained(TEXT, order, "sentence")
    write_arpa(model, tmp_path / "model.arpa")
    theirs = parsed(tmp_path / "model.arpa")
    line = "the dog ran on the cat"
    words = ("<s>", *line.split(), "</s>")
    expected = [score(theirs, words[max(0, i - order + 1) : i + 1]) for i in range(1, len(words))]
    found = [-token.nll / math.log(10) for token in model.score(line)]
    assert found == pytest.approx(expected, rel=1e-5)
    assert (theirs["<s>",][0], theirs["</s>",][0] < 0) == (-99, True)
    assert ("<eos>",) not in theirs


@pytest.mark.parametrize("protocol", ["document", "sentence", "stream"])
@pytest.mark.parametrize(
    ("name", "at_once"),
    [("model.arpa", 2**18), ("model.arpa.gz", 2**18), ("model.arpa", 1), ("model.arpa.gz", 5)],
)
def test_what_is_read_back_is_the_same_to_the_last_bit(
    protocol, name, at_once, tmp_path, caplog, monkeypatch
):
    """However many lines are written at a time."""
    monkeypatch.setattr(arpa, "CHUNK", at_once)
    model = trained(TEXT, 4, protocol)
    sizes = write_arpa(model, tmp_path / name)
    assert is_arpa(tmp_path / name)
    assert (tmp_path / name).read_bytes().startswith(b"\x1f\x8b" if "gz" in name else b"\\data")
    theirs = read_arpa(tmp_path / name)
    assert theirs.tokenizer.vocabulary == model.tokenizer.vocabulary
    assert theirs.sizes == sizes
    expected = state_of(model.model, model.head)
    assert theirs.weights.keys() == expected.keys()
    for key, tensor in expected.items():
        assert torch.equal(theirs.weights[key], tensor), key
    said = ["counted as one stream: no n-gram begins with <s>, as no text does"]
    assert warned(caplog) == (said if protocol == "stream" else [])


def test_a_file_is_never_written_over(tmp_path):
    (tmp_path / "model.arpa").write_text("mine")
    with pytest.raises(UserError, match=r"model\.arpa is there already: give another"):
        write_arpa(trained(ONE_LINE), tmp_path / "model.arpa")
    assert (tmp_path / "model.arpa").read_text() == "mine"
    with pytest.raises(UserError, match="there is no directory"):
        write_arpa(trained(ONE_LINE), tmp_path / "none" / "model.arpa")


def test_a_word_that_ends_sentences_in_such_files_is_refused(tmp_path):
    with pytest.raises(UserError, match="the text has the word </s>, which in such a file"):
        write_arpa(trained("a </s> b\n"), tmp_path / "model.arpa")
    assert list(tmp_path.iterdir()) == []


def test_networks_are_no_arpa_files(tmp_path):
    run = make_run(tmp_path)
    with pytest.raises(UserError, match="format=arpa is for n-grams, and the model is LSTM"):
        export(run, path=str(tmp_path / "model.arpa"), format="arpa")
    assert load(run).model.counted is False
