"""The formats of suites: what is read, and one clear error for each kind of bad file."""

import gzip
import json
import re

import pytest

from lmkit.errors import UserError
from lmkit.suite.reading import Source


def blimp_pair(uid="agreement", **changes):
    record = {
        "sentence_good": "Ann is here.",
        "sentence_bad": "Ann are here.",
        "one_prefix_prefix": "Ann",
        "one_prefix_word_good": "is",
        "one_prefix_word_bad": "are",
        "field": "morphology",
        "linguistics_term": "agreement",
        "UID": uid,
        "simple_LM_method": True,
        "one_prefix_method": True,
        "two_prefix_method": False,
        "pairID": "7",
    } | changes
    return json.dumps({key: value for key, value in record.items() if value is not None})


def two_prefix_pair(**changes):
    return blimp_pair(
        uid="npi",
        field="semantics",
        linguistics_term="npi",
        one_prefix_method=False,
        two_prefix_method=True,
        two_prefix_prefix_good="Nobody has",
        two_prefix_prefix_bad="Ann has",
        two_prefix_word="ever",
        **changes,
    )


def gym(**changes):
    def condition(name, verb):
        contents = ["Ann", " and Bob", "", verb]
        regions = [{"region_number": n, "content": c} for n, c in enumerate(contents, 1)]
        return {"condition_name": name, "regions": regions}

    conditions = [condition("match", "are"), condition("mismatch", "is")]
    return {
        "meta": {"name": "number_and", "metric": "sum"},
        "predictions": [{"type": "formula", "formula": "(4;%match%) < (4;%mismatch%)"}],
        "items": [{"item_number": 3, "conditions": conditions}],
    } | changes


def written(place, **files):
    place.mkdir(exist_ok=True)
    for name, content in files.items():
        (place / name.replace("_dot_", ".")).write_text(content)
    return str(place)


def read(format, path, **keys):
    return Source(format, path, **keys).read()


def test_blimp_by_its_three_methods(tmp_path):
    path = written(
        tmp_path,
        a_dot_jsonl=f"{blimp_pair()}\n\n{blimp_pair(pairID='8')}\n",
        b_dot_jsonl=f"{two_prefix_pair()}\n",
        models_summary_dot_json='{"UID":"agreement","lstm":0.5}\n{"UID":"npi","lstm":0.75}\n'
        '{"UID":"overall","lstm":0.6}\n',
    )
    suite = read("blimp", path)
    assert [(item.id, item.group) for item in suite.items] == [
        ("7", "agreement"),
        ("8", "agreement"),
        ("7", "npi"),
    ]
    assert suite.items[0].sentences == {"good": {1: "Ann is here."}, "bad": {1: "Ann are here."}}
    assert suite.levels["field"] == {"agreement": "morphology", "npi": "semantics"}
    assert suite.levels["phenomenon"] == {"agreement": "agreement", "npi": "npi"}
    assert suite.references == {"lstm": {"agreement": 0.5, "npi": 0.75}}
    one, two = (read("blimp", path, method=method) for method in ("one_prefix", "two_prefix"))
    assert one.skipped == ("npi",)
    assert one.references == {}
    assert one.items[0].sentences == {"good": {1: "Ann", 2: "is"}, "bad": {1: "Ann", 2: "are"}}
    assert two.skipped == ("agreement",)
    assert two.items[0].sentences == {
        "good": {1: "Nobody has", 2: "ever"},
        "bad": {1: "Ann has", 2: "ever"},
    }
    assert one.items[0].formulas[0].text == "(2;%good%) < (2;%bad%)"


def test_syntaxgym(tmp_path):
    other = gym(meta={"name": "own"})
    path = written(tmp_path, a_dot_json=json.dumps(gym()), b_dot_json=json.dumps(other))
    suite = read("syntaxgym", path)
    item = suite.items[0]
    assert (item.id, item.group) == ("3", "number_and")
    assert item.sentences["match"] == {1: "Ann", 2: "and Bob", 3: "", 4: "are"}
    assert [formula.text for formula in item.formulas] == ["(4;%match%) < (4;%mismatch%)"]
    assert not suite.is_pairs
    assert suite.levels == {}  # a single circuit is no level
    npi = gym(meta={"name": "npi_any"})
    path = written(tmp_path, b_dot_json=json.dumps(npi))
    levels = {"circuit": {"number_and": "Agreement", "npi_any": "Licensing"}}
    assert read("syntaxgym", path).levels == levels


@pytest.mark.parametrize(("name", "delimiter"), [("pairs.csv", ","), ("pairs.tsv", "\t")])
def test_a_table(tmp_path, name, delimiter):
    rows = [
        ["kind", "good", "bad"],
        ["np", '"Ann, it is."', "Ann are."],
        [],
        ["vp", "He ran.", "He run."],
    ]
    file = tmp_path / name
    file.write_text("".join(f"{delimiter.join(row)}\n" for row in rows))
    suite = read("table", str(file), group="kind")
    assert [(item.id, item.group) for item in suite.items] == [("2", "np"), ("4", "vp")]
    assert suite.items[0].sentences == {"good": {1: "Ann, it is."}, "bad": {1: "Ann are."}}
    by_file = read("table", str(file), good="bad", bad="good")
    assert {item.group for item in by_file.items} == {"pairs"}
    assert by_file.items[1].sentences == {"good": {1: "He run."}, "bad": {1: "He ran."}}


def test_lines_in_turn(tmp_path):
    path = written(
        tmp_path, a_dot_txt="He ran.\r\nHe run.\r\nAnn is.\nAnn are.", b_dot_txt="X\ny\n"
    )
    suite = read("lines", path)
    assert [(item.id, item.group) for item in suite.items] == [("1", "a"), ("2", "a"), ("1", "b")]
    assert suite.items[0].sentences == {"good": {1: "He ran."}, "bad": {1: "He run."}}
    assert suite.items[1].sentences["bad"] == {1: "Ann are."}


FORMULA = "(4;%match%) << 2"
BROKEN_FORMULA = json.dumps(gym(predictions=[{"formula": FORMULA}]), indent=1)
LINE = BROKEN_FORMULA[: BROKEN_FORMULA.index(FORMULA)].count("\n") + 1
ITEM = gym()["items"][0]
EMPTY = {"condition_name": "match", "regions": [{"region_number": 1, "content": " "}]}


@pytest.mark.parametrize(
    ("format", "name", "content", "keys", "message"),
    [
        # BLiMP
        (
            *("blimp", "a.jsonl", f"{blimp_pair()}\n{{'a': 1}}\n", {}),
            "{file}, line 2 is not JSON: Expecting property name enclosed in double quotes at "
            "column 2; suite=blimp expects a JSON object in each line",
        ),
        (
            *("blimp", "a.jsonl", "[1]\n", {}),
            "{file}, line 1 is list, not an object with sentence_good and sentence_bad",
        ),
        (
            *("blimp", "a.jsonl", '{"sentence_goood": "x"}\n', {}),
            "{file}, line 1 has no 'sentence_good'; did you mean 'sentence_goood'?",
        ),
        (
            *("blimp", "a.jsonl", blimp_pair(sentence_bad=3), {}),
            "{file}, line 1, 'sentence_bad' is int, not a string",
        ),
        (
            *("blimp", "a.jsonl", blimp_pair(sentence_bad=" "), {}),
            "{file}, line 1, 'sentence_bad' is empty: expected a sentence",
        ),
        (
            *("blimp", "a.jsonl", blimp_pair(sentence_good="a\nb"), {}),
            "{file}, line 1, 'sentence_good' holds a line end: a sentence is one line",
        ),
        (
            *("blimp", "a.jsonl", blimp_pair(one_prefix_prefix=None), {"method": "one_prefix"}),
            "{file}, line 1 has no 'one_prefix_prefix'; did you mean 'one_prefix_method'?",
        ),
        (
            *("blimp", "a.jsonl", blimp_pair(), {"method": "two_prefix"}),
            "path={file} has no paradigm with method=two_prefix: none of its 1 has it",
        ),
        (
            *("blimp", "a.jsonl", "\n", {}),
            "path={file} has no paradigm with method=simple: it has no pair at all",
        ),
        # SyntaxGym
        (
            *("syntaxgym", "a.json", '{"meta": {},\n "items": }', {}),
            "{file}, line 2 is not JSON: Expecting value at column 11",
        ),
        (
            *("syntaxgym", "a.json", "[]", {}),
            "{file}, the file is list, not an object of SyntaxGym's",
        ),
        (
            *("syntaxgym", "a.json", json.dumps(gym(items=[])), {}),
            "{file}, the file has 'items' that is empty: expected a list",
        ),
        (
            *("syntaxgym", "a.json", json.dumps({"item": [], "predictions": [ITEM]}), {}),
            "{file}, prediction 1 has no 'formula'; it has item_number, conditions",
        ),
        (
            *("syntaxgym", "a.json", json.dumps(gym(meta={"metric": "mean"})), {}),
            "{file}, 'meta' has the metric 'mean': only 'sum' is known, of the surprisals of a "
            "region's tokens",
        ),
        (
            *("syntaxgym", "a.json", BROKEN_FORMULA, {}),
            f"{{file}}, line {LINE}, prediction 1: the formula '{FORMULA}' cannot be read; "
            "column 14: expected a region such as (5;%condition%), a number or a bracket, found "
            "'<'",
        ),
        (
            "syntaxgym",
            "a.json",
            json.dumps(gym(predictions=[{"formula": "(4;%match%) < (4;%mismach%)"}])),
            {},
            "{file}, item 3 has no condition 'mismach', which prediction 1 names; did you mean "
            "'mismatch'?",
        ),
        (
            "syntaxgym",
            "a.json",
            json.dumps(gym(predictions=[{"formula": "(5;%match%) < (4;%mismatch%)"}])),
            {},
            "{file}, item 3, condition 'match' has no region 5, which prediction 1 names; it has "
            "1, 2, 3, 4",
        ),
        (
            "syntaxgym",
            "a.json",
            json.dumps(gym(items=[{"item_number": 9, "conditions": [EMPTY]}])),
            {},
            "{file}, item 9, condition 'match' is empty: expected a sentence",
        ),
        (
            "syntaxgym",
            "a.json",
            json.dumps(gym(items=[{"conditions": [{"condition_name": "x", "regions": [4]}]}])),
            {},
            "{file}, item 1, condition 'x', a region is int, not an object of SyntaxGym's",
        ),
        # Tables
        (
            *("table", "a.csv", "god,bad\nx,y\n", {}),
            "{file}, line 1 has no column 'good' (good=COLUMN names another); did you mean 'god'?",
        ),
        (
            *("table", "a.csv", "good,bad\nx,y\n", {"group": "kind"}),
            "{file}, line 1 has no column 'kind' (group=COLUMN names another); it has good, bad",
        ),
        (
            *("table", "a.csv", "good,bad\nx,y\nx,\n", {}),
            "{file}, line 3, column 'bad' is empty: expected a sentence",
        ),
        (
            *("table", "a.csv", "good,bad\nx,y,z\n", {}),
            '{file}, line 2 has 3 fields, the first row 2: put quotes (") around fields that hold '
            "the delimiter",
        ),
        (
            *("table", "a.csv", 'good,bad\nx,y\n"x,y\n', {}),
            "{file}, line 3 is no row of a table: unexpected end of data",
        ),
        (
            *("table", "a.csv", "good,bad,bad\nx,y,z\n", {}),
            "{file} has several columns 'bad': rename all but one",
        ),
        (
            *("table", "a.csv", "good,bad\n", {}),
            "path={file} has no row under its first one: there is nothing to test",
        ),
        (
            *("table", "a.csv", "good,bad\nx,y\n", {"group": "good"}),
            "good=good, bad=bad, group=good: name three different columns",
        ),
        # Lines
        (
            *("lines", "a.txt", "x\ny\nz\n", {}),
            "{file} has 3 lines: suite=lines expects a good sentence and a bad one in turn, an "
            "even number",
        ),
        (
            *("lines", "a.txt", "x\ny\n\nz\n", {}),
            "{file}, line 3 is empty: expected a sentence",
        ),
        (
            *("lines", "a.txt", "x\ty\nz\tu\n", {}),
            "{file}, line 1 holds a tab: for a table take suite=table, and a name that ends in "
            ".tsv",
        ),
        # Keys
        (
            *("lines", "a.txt", "x\ny\n", {"method": "simple"}),
            "method=simple is for suite=blimp: leave it out",
        ),
        (
            *("blimp", "a.jsonl", blimp_pair(), {"group": "kind"}),
            "group=kind is for suite=table: leave it out",
        ),
    ],
)
def test_bad_input(tmp_path, format, name, content, keys, message):
    file = tmp_path / name
    file.write_text(content)
    with pytest.raises(UserError) as error:
        read(format, str(file), **keys)
    assert str(error.value) == message.replace("{file}", str(file))


def test_two_suites_of_one_name(tmp_path):
    path = written(tmp_path, a_dot_json=json.dumps(gym()), b_dot_json=json.dumps(gym()))
    with pytest.raises(UserError, match=re.escape("b.json has the name of another suite")):
        read("syntaxgym", path)


def test_a_directory_without_files_of_the_format(tmp_path):
    written(tmp_path, a_dot_jsonl=blimp_pair())
    with pytest.raises(UserError, match=r"names no files that end in \.txt"):
        read("lines", str(tmp_path))
    with pytest.raises(UserError, match="suite=blimp needs path=DIR"):
        read("blimp", None)


@pytest.mark.parametrize(
    ("name", "content", "format", "theirs"),
    [
        ("a.jsonl", f"{blimp_pair()}\n{blimp_pair()}\n", "syntaxgym", "blimp"),
        ("a.jsonl.gz", f"{blimp_pair()}\n", "lines", "blimp"),
        ("a.json", json.dumps(gym(), indent=1), "blimp", "syntaxgym"),
        ("a.csv", "good,bad\nAnn is,Ann are\n", "lines", "table"),
        ("a.txt", "Ann is.\nAnn are.\n", "table", "lines"),
        ("a.tsv", "good\tbad\nAnn is\tAnn are\n", "blimp", "table"),
    ],
)
@pytest.mark.parametrize("of_a_directory", [True, False])
def test_files_of_another_format_name_that(tmp_path, name, content, format, theirs, of_a_directory):
    data = content.encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    path = tmp_path if of_a_directory else tmp_path / name
    said = f"; files of its kind are read with suite={theirs}"
    with pytest.raises(UserError, match=f"{re.escape(said)}$"):
        read(format, str(path))


def test_a_summary_beside_the_pairs_does_not_hide_their_format(tmp_path):
    """As in BLiMP's own repository, whose .json SyntaxGym's reader takes first."""
    (tmp_path / "models_summary.json").write_text("{}\n{}\n")
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_text(f"{blimp_pair()}\n")
    with pytest.raises(UserError, match=r"line 2 is not JSON: .*; .* with suite=blimp$"):
        read("syntaxgym", str(tmp_path))


def test_all_of_blimp(shared_data):
    suite = read("blimp", str(shared_data("blimp")))
    assert len(suite.items) == 67_000
    assert len(suite.by_group()) == len(suite.references["lstm"]) == 67
    assert len(set(suite.levels["phenomenon"].values())) == 13


def test_all_of_syntaxgym(shared_data):
    suite = read("syntaxgym", str(shared_data("syntaxgym")))
    assert len(suite.by_group()) == 34
    assert len(set(suite.levels["circuit"].values())) == 6
    assert set(suite.by_group()) - set(suite.levels["circuit"]) == {"nn-nv-rpl"}
