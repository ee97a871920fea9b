"""`lmkit score table=`: from files to files, what it prints, and what it refuses."""

import csv
import json
import math
import sys
from pathlib import Path

import pytest
from pyarrow import parquet
from trained_run import load, make_run, real_stdout

import lmkit
from lmkit.cli import main
from lmkit.commands import score_table as module
from lmkit.commands.score import score
from lmkit.errors import UserError
from lmkit.inference import table_files

CSV = """id,story,sentence
007,a,"the ""cat"" sat , on the mat ."
008,a,a dog ran .
009,b,None saw the zebra .
"""


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    return tmp_path_factory.mktemp("outputs")


@pytest.fixture(scope="module")
def run(outputs):
    return make_run(outputs)


@pytest.fixture
def stimuli(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "stimuli.csv").write_text(CSV)
    return tmp_path


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_table_of_words(run, stimuli, capfd, caplog):
    caplog.set_level("INFO")
    keys = ["table=stimuli.csv", "out=words.csv", "context_column=story", "spillover=1"]
    assert main(["score", str(run.path), *keys]) == 0
    out = capfd.readouterr().out.splitlines()
    assert out[0].startswith("words.csv: 17 words (4 unknown) in 3 rows, 19 tokens, ")
    assert out[0].endswith(" tokens/s")
    assert out[1:] == [
        '  pandas: pandas.read_csv("words.csv", keep_default_na=False, na_values=[""])',
        '  R:      readr::read_csv("words.csv")',
    ]
    assert caplog.messages[-1] == (
        "pandas would take None for a missing value, here a word: read the table as below"
    )
    rows = rows_of(stimuli / "words.csv")
    assert [row["id"] for row in rows] == ["007"] * 8 + ["008"] * 4 + ["009"] * 5
    assert [row["word"] for row in rows][:4] == ["the", '"cat"', "sat", ","]
    assert rows[8]["surprisal_prev1"] == rows[7]["surprisal"]
    assert (rows[12]["surprisal_prev1"], rows[12]["length_prev1"]) == ("", "")
    unknown = [row["word"] for row in rows if row["unknown"] == "true"]
    assert unknown == ['"cat"', ",", "None", "zebra"]
    assert sorted(each.name for each in stimuli.iterdir()) == ["stimuli.csv", "words.csv"]


def test_its_sums_are_those_of_the_text(run, stimuli):
    score(run, run.config(), table="stimuli.csv")
    rows = rows_of(stimuli / "stimuli-words.csv")
    trained = load(run)
    for number in ("007", "008", "009"):
        own = [row for row in rows if row["id"] == number]
        scored = trained.score(own[0]["sentence"])
        bits = math.fsum(token.bits for token in scored[:-1])
        assert math.fsum(float(row["surprisal"]) for row in own) == pytest.approx(bits, abs=1e-4)


@pytest.mark.parametrize("suffix", table_files.SUFFIXES)
def test_every_format_holds_the_same(run, stimuli, suffix):
    score(run, run.config(), table="stimuli.csv", out=f"a{suffix}", spillover=1)
    name = f"a{suffix}"
    result = score(run, run.config(), table=name, out="again.jsonl", prefix="b_")
    assert (result["num_rows"], result["table"]) == (17, name)
    again = [json.loads(line) for line in (stimuli / "again.jsonl").read_text().splitlines()]
    expected = [row for row in rows_of_csv(run, stimuli) for _ in row["sentence"].split()]
    assert [row["sentence"] for row in again] == [row["sentence"] for row in expected]
    assert [row["word"] for row in again] == [row["word"] for row in expected]
    for row, other in zip(again, expected, strict=True):
        assert float(row["surprisal"]) == pytest.approx(float(other["surprisal"]), abs=1e-5)
        assert str(row["num_tokens"]) == other["num_tokens"]
        assert str(row["unknown"]).lower() == other["unknown"]


def rows_of_csv(run, place):
    score(run, run.config(), table="stimuli.csv", out="plain.csv", spillover=1)
    rows = rows_of(place / "plain.csv")
    (place / "plain.csv").unlink()
    return rows


def test_one_json_document(run, stimuli, capfd):
    with real_stdout():
        arguments = ["table=stimuli.csv", "out=words.parquet", "format=json"]
        assert main(["score", str(run.path), *arguments]) == 0
    result = json.loads(capfd.readouterr().out)
    assert result.pop("tokens_per_second") > 0
    assert result == {
        **{"run": f"tiny/{run.id}", "checkpoint": "best", "step": 7, "protocol": "document"},
        **{"precision": "32-true", "table": "stimuli.csv", "out": "words.parquet"},
        **{"num_rows": 3, "num_texts": 3, "num_words": 17, "num_tokens": 20},
        "num_unknown": 4,
    }
    assert parquet.read_table("words.parquet").num_rows == 17


def test_the_same_from_python(run, stimuli):
    pandas = pytest.importorskip("pandas")
    items = pandas.read_csv("stimuli.csv", dtype=str)
    found = lmkit.load(run.path).table(items, context_column="story", spillover=2)
    score(run, run.config(), table="stimuli.csv", context_column="story", spillover=2)
    known = {"keep_default_na": False, "na_values": [""], "dtype": {"id": str}}
    written = pandas.read_csv("stimuli-words.csv", **known)
    pandas.testing.assert_frame_equal(found, written, check_dtype=False)


def test_nothing_is_computed_or_written_for_a_mistake(run, stimuli, monkeypatch):
    monkeypatch.setattr(module, "tabulate", lambda *a: pytest.fail("computed"))
    for keys, message in (
        ({"table": "stimuli.csv", "text": "a"}, "table and text are both given: leave one out"),
        ({"table": "stimuli.csv", "file": "a"}, "table and file are both given: leave one out"),
        ({"text": "a", "out": "a.csv", "spillover": 1}, "spillover and out: only with table="),
        (
            {"table": "stimuli.csv", "out": "stimuli.csv"},
            "out=stimuli.csv exists: name another file, or remove it",
        ),
        ({"table": "stimuli.csv", "spillover": 99}, "spillover=99: must be from 0 to 20"),
    ):
        with pytest.raises(UserError) as error:
            score(run, run.config(), **keys)
        assert str(error.value) == message
    assert [each.name for each in stimuli.iterdir()] == ["stimuli.csv"]


def test_a_mistake_in_the_table_names_its_line(run, stimuli):
    (stimuli / "stimuli.csv").write_text(CSV + '010,b,""\n011,"",x\n')
    with pytest.raises(UserError) as error:
        score(run, run.config(), table="stimuli.csv")
    assert str(error.value) == (
        "stimuli.csv, line 5: column 'sentence' is empty; give each row a text, or leave it out"
    )
    (stimuli / "stimuli.csv").write_text(CSV + '010,"",x\n')
    with pytest.raises(UserError) as error:
        score(run, run.config(), table="stimuli.csv", context_column="story")
    assert str(error.value) == (
        "stimuli.csv, line 5: context_column=story is empty; name the text that the row belongs to"
    )
    assert [each.name for each in stimuli.iterdir()] == ["stimuli.csv"]


def test_words_that_are_missing_values_to_others(run, stimuli, capsys, caplog):
    (stimuli / "a.tsv").write_text("sentence\nthe NA and null\n")
    score(run, run.config(), table="a.tsv")
    assert caplog.messages[-1] == (
        "pandas and R would take NA and null for a missing value, here a word: read the table as "
        "below"
    )
    assert capsys.readouterr().out.splitlines()[1:] == [
        '  pandas: pandas.read_csv("a-words.tsv", keep_default_na=False, na_values=[""], '
        'sep="\\t")',
        '  R:      readr::read_tsv("a-words.tsv", na = "")',
    ]
    pandas = pytest.importorskip("pandas")
    frame = pandas.read_csv("a-words.tsv", keep_default_na=False, na_values=[""], sep="\t")
    assert frame["word"].tolist() == ["the", "NA", "and", "null"]
    assert set(module.MISSING) == pandas._libs.parsers.STR_NA_VALUES - {""}


def test_texts_that_take_much_room_are_said_to(run, stimuli, caplog, monkeypatch):
    monkeypatch.setattr(module, "MUCH_TEXT", 7 * 7 + 3 * 3 + 1)
    (stimuli / "a.tsv").write_text("sentence\nthe cat sat\na b\nx\n")
    score(run, run.config(), table="a.tsv")
    assert caplog.messages == []
    (stimuli / "b.tsv").write_text("sentence\n" + "the cat sat " * 9 + "\n")
    score(run, run.config(), table="b.tsv")
    assert caplog.messages == [
        "the texts, repeated for each of their words, have 0.0 GB: give each sentence a row of its "
        "own, and the story a column, as context_column=story"
    ]


def test_progress_on_a_terminal(run, stimuli, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    score(run, run.config(), table="stimuli.csv")
    shown = capsys.readouterr().err
    assert "words" in shown
    assert "tokens/s" in shown


def test_the_columns_of_neural_complexity(foreign_models, tmp_path, monkeypatch):
    """Its own table of its own model: surprisal, entropy and entropy reduction to 1e-3 bits."""
    monkeypatch.chdir(tmp_path)
    theirs = foreign_models / "neural-complexity"
    keys = [f"vocabulary={theirs / 'vocab.txt'}", "name=nc", "run_id=nc"]
    assert main(["import", str(theirs / "model.pt"), *keys]) == 0
    with Path("items.csv").open("w", newline="") as file:
        lines = (theirs / "sentences.txt").read_text().splitlines()
        csv.writer(file).writerows([["sentid", "sentence"], *enumerate(lines)])
    assert main(["score", "nc", "table=items.csv", "out=words.csv"]) == 0
    expected = [
        line.split(" ")
        for line in (theirs / "surprisal.txt").read_text().splitlines()[1:]
        if line.count(" ") == 6
    ]
    rows = rows_of(tmp_path / "words.csv")
    assert len(rows) == len(expected) == 47
    for row, other in zip(rows, expected, strict=True):
        word, sentence, place, _, *bits = other
        assert row["word"] == word or (word == "<unk>" and row["unknown"] == "true")
        assert (row["sentid"], int(row["position"])) == (sentence, int(place) + 1)
        found = [float(row[key]) for key in ("surprisal", "entropy", "entropy_reduction")]
        assert found == pytest.approx([float(each) for each in bits], abs=1e-3)
