"""`lmkit evaluate suite=`: results, files, several runs, keys that do not go together."""

import json
import logging
from pathlib import Path

import pytest
from trained_run import load, make_run, real_stdout, save_weights, warned

from lmkit.cli import main
from lmkit.commands.evaluate import evaluate
from lmkit.errors import UserError
from lmkit.suite import Source
from lmkit.suite.sums import region_sums
from lmkit.system import files

PAIRS = [
    ("np", "the cat sat on the mat .", "the cat sat on mat the ."),
    ("np", "the cat sat on mat the .", "the cat sat on the mat ."),
    ("vp", "the zebra ran .", "the giraffe ran ."),
    ("vp", "the dog ran", "the dog ran"),
]


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    return tmp_path_factory.mktemp("outputs")


@pytest.fixture(scope="module")
def lstm(outputs):
    return make_run(outputs)


@pytest.fixture(scope="module")
def gru(outputs):
    return make_run(outputs, "gru", "bytes")


@pytest.fixture
def table(tmp_path):
    file = tmp_path / "pairs.csv"
    file.write_text("".join(f"{','.join(row)}\n" for row in [("kind", "good", "bad"), *PAIRS]))
    return str(file)


def of_table(run, table, **keys):
    return evaluate(run, run.config(), suite="table", path=table, group="kind", **keys)


def test_accuracy_is_that_of_the_sums(lstm, table):
    (found,) = of_table(lstm, table)["runs"]
    trained = load(lstm)
    sums = iter(region_sums(trained, [(text,) for _, *pair in PAIRS for text in pair]))
    better = [next(sums).bits < next(sums).bits for _ in PAIRS]
    # The second pair is the first in turn; then come two unknown words, and the same sentence.
    assert (sum(better[:2]), better[2:]) == (1, [False, False])
    groups = found["groups"]
    assert groups["np"]["num_correct"] == 1
    assert (groups["vp"]["num_correct"], groups["vp"]["num_ties"]) == (0, 2)
    assert (groups["np"]["num_unknown"], groups["vp"]["num_unknown"]) == (0, 1)
    assert found["overall"]["accuracy"] == 0.25
    assert (found["run"], found["checkpoint"], found["step"]) == (f"tiny/{lstm.id}", "best", 7)


def test_the_files(lstm, table):
    result = of_table(lstm, table)
    numbers, items, picture = map(Path, result["files"])
    assert json.loads(numbers.read_text()) == json.loads(files.strict_json(result))
    assert numbers.parent.parent == lstm.path / "suites"
    assert numbers.parent.name.startswith("table-best-step-7-32-true-")
    rows = [json.loads(line) for line in items.read_text().splitlines()]
    assert len(rows) == len(PAIRS)
    assert rows[2]["sentences"] == {"good": PAIRS[2][1], "bad": PAIRS[2][2]}
    assert rows[2]["bits"]["good"] == rows[2]["bits"]["bad"]
    assert (rows[2]["correct"], rows[2]["tied"], rows[2]["unknown"]) == ([False], [True], True)
    assert picture.read_bytes().startswith(b"\x89PNG")
    again = of_table(lstm, table)
    assert again["files"] == result["files"]
    assert of_table(lstm, table, end=True)["files"] != result["files"]
    assert of_table(lstm, table, lower=True)["files"] != result["files"]
    assert not list((lstm.path / "suites").glob(".*"))


def test_another_step_has_files_of_its_own(tmp_path, table):
    run = make_run(tmp_path)
    first = of_table(run, table)
    save_weights(run, run.config(), load(run).tokenizer, step=9)
    assert of_table(run, table)["files"] != first["files"]
    assert len(list((run.path / "suites").iterdir())) == 2


def test_several_runs_side_by_side(lstm, gru, table, capsys):
    both = of_table(lstm, table, others=[gru.id])
    alone = [of_table(run, table)["runs"][0] for run in (lstm, gru)]
    for found, own in zip(both["runs"], alone, strict=True):
        assert (found["run"], found["groups"]) == (own["run"], own["groups"])
    rows = [json.loads(line) for line in Path(both["files"][1]).read_text().splitlines()]
    assert [row["run"] for row in rows] == [f"tiny/{r.id}" for r in (lstm, gru) for _ in PAIRS]
    out = capsys.readouterr().out
    assert f"tiny/{lstm.id}" in out
    assert f"tiny/{gru.id}" in out


def test_a_table_that_is_no_terminals_has_room_for_every_column(lstm, gru, outputs, table, capsys):
    others = [gru.id, make_run(outputs, "tanh").id, make_run(outputs, "relu").id]
    of_table(lstm, table, others=others)
    out = capsys.readouterr().out
    assert all(f"tiny/{name}" in out for name in others)
    assert "…" not in out


def test_the_others_are_named_once_and_exist(lstm, gru, table):
    with pytest.raises(UserError, match="others: nothing names no run in "):
        of_table(lstm, table, others="nothing")
    with pytest.raises(UserError, match="name each run once, and not RUN again"):
        of_table(lstm, table, others=[lstm.id])


def test_punctuation_apart_makes_words_known(lstm, tmp_path, caplog):
    file = tmp_path / "a.txt"
    file.write_text("the cat sat.\nthe cat on.\n" * 2)
    keys = {"suite": "lines", "path": str(file)}
    (as_is,) = evaluate(lstm, lstm.config(), **keys)["runs"]
    assert as_is["overall"]["num_unknown"] == as_is["overall"]["num_ties"] == 2
    assert warned(caplog) == [
        f"tiny/{lstm.id}: 100% of the items have words that are not in its vocabulary; with "
        "punctuation=apart 0% have"
    ]
    (apart,) = evaluate(lstm, lstm.config(), **keys, punctuation="apart")["runs"]
    assert apart["overall"]["num_unknown"] == 0
    assert len(caplog.records) == 1


def test_lower_case_is_named_where_it_helps(lstm, tmp_path, caplog):
    file = tmp_path / "a.txt"
    file.write_text("The CAT sat .\nThe CAT on .\n")
    evaluate(lstm, lstm.config(), suite="lines", path=str(file))
    assert warned(caplog)[0].endswith("vocabulary; with lower=true 0% have")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"suite": "lines", "path": "x", "split": "test"}, "split: no effect with suite=lines"),
        ({"suite": "lines", "path": "x", "num_lanes": 0}, "num_lanes: no effect with suite=lines"),
        ({"path": "x", "end": True}, "path, end: no effect without suite=; leave it out"),
        ({"punctuation": "apart"}, "punctuation: no effect without suite="),
        ({"suite": "lines"}, "suite=lines needs path=DIR or path=FILE"),
    ],
)
def test_keys_that_do_not_go_together(lstm, keys, message):
    with pytest.raises(UserError, match=message):
        evaluate(lstm, lstm.config(), **keys)


def test_bad_input_leaves_nothing_behind(tmp_path, table):
    run = make_run(tmp_path)
    before = sorted(run.path.rglob("*"))
    with Path(table).open("a") as file:
        file.write("np,good,\n")
    with pytest.raises(UserError, match="line 6, column 'bad' is empty"):
        of_table(run, table)
    assert sorted(run.path.rglob("*")) == before


def test_a_full_disk_leaves_nothing_behind(tmp_path, table, monkeypatch):
    run = make_run(tmp_path)
    before = sorted(run.path.rglob("*"))
    real = files.write_atomically

    def full(path, data):
        if path.suffix == ".png":
            raise OSError(28, "No space left on device", str(path))
        real(path, data)

    monkeypatch.setattr(files, "write_atomically", full)
    with pytest.raises(OSError, match="No space left"):
        of_table(run, table)
    assert sorted(run.path.rglob("*")) == before


def test_a_directory_that_cannot_be_written_is_an_error_before_the_work(lstm, table, monkeypatch):
    def refused(dir):
        raise PermissionError(13, "Permission denied", str(dir))

    monkeypatch.setattr("tempfile.TemporaryFile", refused)
    monkeypatch.delattr("lmkit.suite.comparison.evaluate_suite")
    with pytest.raises(UserError) as error:
        of_table(lstm, table)
    message = f"cannot write the results into {lstm.path}: Permission denied; make it writable"
    assert str(error.value) == message


def test_a_link_out_of_the_run_is_refused(tmp_path, table):
    run = make_run(tmp_path / "outputs")
    (tmp_path / "elsewhere").mkdir()
    (run.path / "suites").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="out of the run directory"):
        of_table(run, table)
    assert not list((tmp_path / "elsewhere").iterdir())


def test_the_command_line(lstm, table, capfd, tmp_path):
    where = f"outputs={lstm.path.parents[1]}"
    keys = ["suite=table", f"path={table}", "group=kind", where]
    with real_stdout():
        assert main(["evaluate", lstm.id, *keys, "format=json"]) == 0
        result = json.loads(capfd.readouterr().out)
        assert result["runs"][0]["precision"] == "32-true"
        assert main(["evaluate", lstm.id, *keys, "trainer.precision=bf16-mixed"]) == 0
        assert "-bf16-mixed-" in capfd.readouterr().out
        assert main(["evaluate", lstm.id, "suite=tabel", f"path={table}", where]) == 2
    assert "did you mean table?" in capfd.readouterr().err


def test_full_precision_is_the_command_lines(tmp_path, table, capfd):
    """Whatever the training's was; only with `suite=`."""
    run = make_run(tmp_path)
    config = run.config()
    config["trainer"]["precision"] = "bf16-mixed"
    run.write("config.yaml", config)
    where = f"outputs={tmp_path}"
    with real_stdout():
        keys = ["suite=table", f"path={table}", where, "format=json"]
        assert main(["evaluate", run.id, *keys]) == 0
        assert json.loads(capfd.readouterr().out)["runs"][0]["precision"] == "32-true"
        assert main(["evaluate", run.id, where, "format=json"]) == 0
        assert json.loads(capfd.readouterr().out)["precision"] == "bf16-mixed"


def test_every_method_of_blimp(lstm, tmp_path, caplog):
    record = {"sentence_good": "the cat ran", "sentence_bad": "the cat on", "UID": "one"}
    record |= {"one_prefix_method": True, "one_prefix_prefix": "the cat"}
    record |= {"one_prefix_word_good": "ran", "one_prefix_word_bad": "on"}
    other = {**record, "UID": "two", "one_prefix_method": False}
    file = tmp_path / "a.jsonl"
    file.write_text(f"{json.dumps(record)}\n{json.dumps(other)}\n")
    caplog.set_level(logging.INFO, "lmkit")
    keys = {"suite": "blimp", "path": str(file)}
    simple = evaluate(lstm, lstm.config(), **keys)
    prefix = evaluate(lstm, lstm.config(), **keys, method="one_prefix")
    assert (list(simple["runs"][0]["groups"]), simple["skipped"]) == (["one", "two"], [])
    assert (list(prefix["runs"][0]["groups"]), prefix["skipped"]) == (["one"], ["two"])
    message = "method=one_prefix: 1 paradigms do not have it and are left out: two"
    assert message in caplog.messages
    # The prefix is the same, so the two methods must agree here.
    rows = [json.loads(Path(r["files"][1]).read_text().split("\n")[0]) for r in (simple, prefix)]
    whole, word = (row["bits"] for row in rows)
    for side in ("good", "bad"):
        assert whole[side]["1"] == pytest.approx(sum(word[side].values()), abs=1e-9)
    assert Source("blimp", str(file)).read().is_pairs


def test_a_model_of_another_program_beside_ours(lstm, foreign_models, tmp_path, capfd):
    """Its sums are those of its own program's table."""
    there = foreign_models / "neural-complexity"
    where = f"outputs={lstm.path.parents[1]}"
    files = [str(there / "model.pt"), f"vocabulary={there / 'vocab.txt'}"]
    sentences = (there / "sentences.txt").read_text().splitlines()
    (tmp_path / "a.txt").write_text("".join(f"{line}\n" for line in sentences[:4]))
    keys = ["suite=lines", f"path={tmp_path / 'a.txt'}", "others=[theirs]", "format=json", where]
    with real_stdout():
        assert main(["import", *files, "run_id=theirs", where]) == 0
        capfd.readouterr()
        assert main(["evaluate", lstm.id, *keys]) == 0
    result = json.loads(capfd.readouterr().out)
    lines = Path(result["files"][1]).read_text().splitlines()
    rows = [json.loads(line) for line in lines if '"imported/theirs"' in line]
    table = [line.split() for line in (there / "surprisal.txt").read_text().splitlines()[1:-3]]
    for number in range(4):
        expected = sum(float(row[4]) for row in table if row[1] == str(number))
        bits = rows[number // 2]["bits"]["bad" if number % 2 else "good"]["1"]
        assert bits == pytest.approx(expected, abs=1e-3)
