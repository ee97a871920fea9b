"""nll of whole texts against a slow loop over plain lists: neither lanes, windows nor resets."""

import json
import math
from itertools import chain
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trained_run import MODELS, TEST, SlowTwin, load, make_run, real_stdout, warned

from lmkit.cli import main
from lmkit.commands.evaluate import evaluate
from lmkit.errors import UserError
from lmkit.inference import Text
from lmkit.inference.evaluation import measure
from lmkit.windows.lanes import Protocol

DOCUMENTS = [
    " = Third = \n the cat saw a dog on the mat . \n\n",
    " = Fourth = \n a zebra ran . \n\n",
    " = Fifth = \n the end . \n",
]


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    return tmp_path_factory.mktemp("outputs")


@pytest.fixture(scope="module")
def lstm(outputs):
    return make_run(outputs)


def slow_nll(trained, texts):
    """(nats, tokens) of texts read one by one, each from the zero state to its end."""
    twin, tokenizer = SlowTwin(trained), trained.tokenizer
    nats, count = 0.0, 0
    for text in texts:
        tokens = tokenizer.encode([text]).ids.tolist()
        nats += twin.nll_sum(tokenizer.eos_id, tokens)
        count += len(tokens)
    return nats, count


@pytest.mark.parametrize("kind", MODELS)
def test_a_split_under_document_and_stream_equals_the_slow_loop(outputs, kind):
    assert "".join(DOCUMENTS) == TEST
    run = make_run(outputs, kind)
    result = evaluate(run, run.config(), protocol=["document", "stream", "sentence"])
    document, stream, sentence = result["results"]
    texts = {"document": DOCUMENTS, "stream": [TEST], "sentence": TEST.splitlines()}
    for measured in (document, stream, sentence):
        nats, count = slow_nll(load(run), texts[measured["protocol"]])
        assert measured["num_tokens"] == count == result["num_tokens"]
        assert measured["nll"] == pytest.approx(nats / count, abs=1e-5)
        assert measured["perplexity"] == pytest.approx(math.exp(nats / count), rel=1e-5)
    assert (document["num_lanes"], stream["num_lanes"], sentence["num_lanes"]) == (3, 1, 8)
    assert document["nll"] != pytest.approx(sentence["nll"], abs=1e-3)
    # Last, so that a window model too is seen to know what is before a document.
    assert document["nll"] != pytest.approx(stream["nll"], abs=1e-3)


def test_the_counts_of_a_split(lstm):
    result = evaluate(lstm, lstm.config())
    words = [word for line in TEST.splitlines() for word in [*line.split(), "<eos>"]]
    known = set(load(lstm).tokenizer.vocabulary)
    assert result["split"] == "test"
    assert result["num_documents"] == 3
    assert result["num_tokens"] == len(words)
    assert result["num_unknown"] == sum(word not in known for word in words) == 5
    assert result["num_bytes"] == len(TEST)
    (measured,) = result["results"]
    assert measured["protocol"] == "document"
    assert measured["bits_per_byte"] is None  # words forget the spaces between them
    assert measured["tokens_per_second"] > 0


@pytest.mark.parametrize("tokenizer", ["bytes", "bpe"])
def test_bits_per_byte_are_by_the_bytes_of_the_documents(outputs, tokenizer):
    run = make_run(outputs, "gru", tokenizer)
    (measured,) = evaluate(run, run.config(), split="test")["results"]
    nats, count = slow_nll(load(run), DOCUMENTS)
    assert measured["nll"] == pytest.approx(nats / count, abs=1e-5)
    num_bytes = len(TEST.encode())
    assert measured["bits_per_byte"] == pytest.approx(nats / math.log(2) / num_bytes, abs=1e-5)


class Store:
    """Documents of lines of token ids, as a token store has them."""

    def __init__(self, documents):
        lines = [line for lines in documents for line in lines]
        self.tokens = [token for line in lines for token in line]
        self.num_tokens = len(self.tokens)
        self.line_ends = _ends(map(len, lines))
        self.document_ends = _ends(sum(map(len, lines)) for lines in documents)

    def release(self):
        pass


def _ends(lengths):
    total, ends = 0, []
    for length in lengths:
        total += length
        ends.append(total)
    return ends


ids = st.integers(0, 9)
texts = st.lists(
    st.lists(st.lists(ids, min_size=1, max_size=7), min_size=1, max_size=3), min_size=1
)


@given(
    documents=texts,
    protocol=st.sampled_from(get_args(Protocol)),
    num_lanes=st.integers(1, 6),
    positions=st.integers(1, 40),
    kind=st.sampled_from(["lstm", "tanh", "window"]),
)
def test_nll_depends_on_the_units_alone(outputs, documents, protocol, num_lanes, positions, kind):
    trained = cached(outputs, kind)
    store = Store(documents)
    if protocol == "stream":
        num_lanes = 1
    *_, (nats, count) = trained.nll_sums(trained.loader(store, protocol, num_lanes, positions))
    units = {
        "document": [list(chain.from_iterable(lines)) for lines in documents],
        "sentence": [line for lines in documents for line in lines],
        "stream": [store.tokens],
    }[protocol]
    twin, eos_id = SlowTwin(trained), trained.tokenizer.eos_id
    assert count == store.num_tokens
    assert nats == pytest.approx(sum(twin.nll_sum(eos_id, unit) for unit in units), abs=1e-4)


_trained = {}


def cached(outputs, kind):
    if kind not in _trained:
        _trained[kind] = load(make_run(outputs, kind))
    return _trained[kind]


def test_under_stream_every_further_lane_forgets_what_is_before_it(outputs):
    trained = cached(outputs, "lstm")
    store = Text.of(TEST, trained.tokenizer)
    one, three = (measure(trained, store, "stream", lanes) for lanes in (None, 3))
    assert (one["num_lanes"], three["num_lanes"]) == (1, 3)
    assert one["nll"] != pytest.approx(three["nll"], abs=1e-4)


def test_a_text_or_file_of_its_own_is_one_document(lstm, tmp_path):
    nats, count = slow_nll(load(lstm), [TEST])
    file = tmp_path / "my texts, [new] (1).txt"
    file.write_bytes(b"\xef\xbb\xbf" + TEST.replace("\n", "\r\n").encode())
    of_file = evaluate(lstm, lstm.config(), file=str(file))
    of_text = evaluate(lstm, lstm.config(), text=TEST)
    assert (of_file["file"], of_text["text"]) == (str(file), "given")
    for result in (of_file, of_text):
        assert (result["num_documents"], result["num_tokens"]) == (1, count)
        assert result["num_unknown"] == 5
        assert result["results"][0]["nll"] == pytest.approx(nats / count, abs=1e-5)
    assert load(lstm).perplexity(TEST) == pytest.approx(math.exp(nats / count), rel=1e-5)


def refused(run, **arguments):
    with pytest.raises(UserError) as error:
        evaluate(run, run.config(), **arguments)
    return str(error.value)


def test_what_cannot_be_evaluated(lstm, tmp_path):
    assert refused(lstm, split="dev") == "split=dev: the data has train, valid, test"
    assert refused(lstm, num_lanes=0) == "num_lanes=0: must be at least 1"
    both = "text and file are both given: leave one of them out"
    assert refused(lstm, text="the", file="x.txt") == both
    assert refused(lstm, text="the", split="test") == (
        "split=test and text are both given: leave one of them out"
    )
    (tmp_path / "there.txt").write_text(" \n\n")
    missing = str(tmp_path / "their.txt")
    assert refused(lstm, file=missing) == (
        f"file={missing} does not exist; {tmp_path} has there.txt"
    )
    assert refused(lstm, file=str(tmp_path)) == (
        f"file={tmp_path} is not a file; {tmp_path} has there.txt"
    )
    assert refused(lstm, file=str(tmp_path / "there.txt")) == (
        "the text is empty: give one that has words"
    )
    (tmp_path / "bad.txt").write_bytes(b"the cat\nsat \xff on")
    assert refused(lstm, file=str(tmp_path / "bad.txt")).startswith(
        f"{tmp_path}/bad.txt is not UTF-8: byte 0xff at byte offset 12 "
    )


def test_a_split_that_has_changed_since_training_is_said_to_have(tmp_path, caplog):
    run = make_run(tmp_path)
    evaluate(run, run.config())
    assert not warned(caplog)
    (tmp_path / "corpus" / "test.txt").write_text(" = New = \n the cat . \n")
    assert evaluate(run, run.config())["num_tokens"] == 8
    assert warned(caplog)[-1] == (
        f"test has changed since {run.id} was trained: its text is another one"
    )


def test_the_command_prints_a_table_or_one_json_document(lstm, capfd):
    arguments = ["evaluate", str(lstm.path), "protocol=[document,stream]", "split=valid"]
    assert main(arguments) == 0
    out = capfd.readouterr().out
    with real_stdout():
        assert main([*arguments, "format=json"]) == 0
    captured = capfd.readouterr()
    result = json.loads(captured.out)
    document, stream = result["results"]
    rows = {
        cells[0]: cells[1:]
        for line in out.splitlines()
        if len(cells := [cell.strip() for cell in line.replace("┃", "│").split("│")[1:-1]]) == 3
    }
    assert out.splitlines()[0] == "tiny/lstm-word-document (best) on valid"
    assert rows[""] == ["document", "stream"]
    assert rows["lanes"] == ["2", "1"]
    assert rows["unknown tokens"] == ["0", "0"]
    assert rows["tokens"] == [f"{result['num_tokens']:,}"] * 2
    assert rows["nll (nats per token)"] == [f"{document['nll']:.5f}", f"{stream['nll']:.5f}"]
    assert rows["perplexity"] == [f"{x['perplexity']:,.2f}" for x in (document, stream)]
    assert "bits per byte" not in rows
    assert "perplexity" in captured.err  # what people read, out of the way of the JSON


def test_the_config_can_be_changed_for_an_evaluation(lstm, tmp_path, capfd):
    corpus = tmp_path / "other"
    corpus.mkdir()
    (corpus / "a.txt").write_text("the cat sat .\n\nthe dog ran .\n\na cat .\n")
    arguments = [f"data.path={corpus}/a.txt", "data.unit=paragraph", "split=train"]
    arguments += ["data.valid_fraction=0", "data.test_fraction=0", "trainer.precision=bf16-mixed"]
    with real_stdout():
        assert main(["evaluate", str(lstm.path), "data=files", *arguments, "format=json"]) == 0
    result = json.loads(capfd.readouterr().out)
    assert (result["num_documents"], result["precision"]) == (3, "bf16-mixed")
    nats, count = slow_nll(load(lstm), ["the cat sat .", "the dog ran .", "a cat ."])
    assert result["num_tokens"] == count
    assert result["results"][0]["nll"] == pytest.approx(nats / count, rel=0.03)


def test_wikitext_equals_the_slow_loop(lstm, wikitext):
    config = lstm.config()
    config["data"] = {"_target_": "lmkit.corpus.WikiText", "path": str(wikitext)}
    document, stream = evaluate(lstm, config, protocol=["document", "stream"])["results"]
    lines = (wikitext / "test.txt").read_text().splitlines(keepends=True)
    articles = []
    for line in lines:
        if not articles or (line.startswith(" = ") and not line.startswith(" = = ")):
            articles.append("")
        articles[-1] += line
    for measured, texts in ((document, articles), (stream, ["".join(lines)])):
        nats, count = slow_nll(load(lstm), texts)
        assert measured["num_tokens"] == count == 245_569
        assert measured["nll"] == pytest.approx(nats / count, abs=1e-5)
