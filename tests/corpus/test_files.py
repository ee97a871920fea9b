"""Sources: their documents, splits, fingerprints, and what they say of bad input."""

import csv
import gzip
import importlib.util
import itertools
import json
import logging
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from lmkit.corpus import (
    Csv,
    Document,
    Files,
    HuggingFace,
    Jsonl,
    MemoryProbe,
    Parquet,
    Pydocs,
    Source,
    WikiText,
    memory_probe,
)
from lmkit.corpus.source import TokenCount
from lmkit.errors import UserError

TEXTS = [f"document {n} of many\nand its second line" for n in range(120)]


def texts(source: Source, split: str) -> list[str]:
    return [document.text for document in source.documents(split)]


def all_texts(source: Source) -> dict[str, list[str]]:
    return {split: texts(source, split) for split in source.splits}


def written(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, newline="")
    return path


def jsonl(path: Path, rows: list[str]) -> Path:
    return written(path, "".join(json.dumps({"text": row}) + "\n" for row in rows))


def raises(message: str) -> Any:
    return pytest.raises(UserError, match=f"^{re.escape(message)}$")


# ---- the cut by hash


def test_the_cut_is_a_partition_in_the_order_of_the_source(tmp_path: Path) -> None:
    source = Jsonl(str(jsonl(tmp_path / "a.jsonl", TEXTS)))
    splits = all_texts(source)
    assert list(splits) == ["train", "valid", "test"]
    assert sorted(itertools.chain(*splits.values())) == sorted(TEXTS)
    for part in splits.values():
        assert part == [text for text in TEXTS if text in part]
    assert 80 <= len(splits["train"]) <= 110


@given(
    st.lists(st.integers(0, 10**6), min_size=1, max_size=80),
    st.randoms(use_true_random=False),
    st.sampled_from([(0.1, 0.1), (0.3, 0.2), (0.0, 0.5)]),
)
def test_a_document_keeps_its_split_whatever_joins_it(
    tmp_path_factory: pytest.TempPathFactory, more: list[int], random: Any, parts: tuple[Any, ...]
) -> None:
    directory = tmp_path_factory.mktemp("cut")
    fractions = {"valid_fraction": parts[0], "test_fraction": parts[1]}
    before = all_texts(Jsonl(str(jsonl(directory / "a.jsonl", TEXTS)), **fractions))
    mixed = TEXTS + [f"new {n}" for n in more]
    random.shuffle(mixed)
    after = all_texts(Jsonl(str(jsonl(directory / "b.jsonl", mixed)), **fractions))
    for split, part in before.items():
        assert set(after[split]) & set(TEXTS) == set(part)
    assert sum(map(len, after.values())) == len(mixed)


def test_copies_of_a_document_share_a_split_and_valid_never_moves_test(tmp_path: Path) -> None:
    path = str(jsonl(tmp_path / "a.jsonl", TEXTS + TEXTS))
    splits = all_texts(Jsonl(path))
    assert all(set(Counter(part).values()) == {2} for part in splits.values())
    wider = all_texts(Jsonl(path, valid_fraction=0.4))
    assert wider["test"] == splits["test"]
    assert set(wider["valid"]) > set(splits["valid"])


def test_a_fraction_of_zero_is_no_split(tmp_path: Path) -> None:
    path = str(jsonl(tmp_path / "a.jsonl", TEXTS))
    source = Jsonl(path, valid_fraction=0, test_fraction=0)
    assert all_texts(source) == {"train": TEXTS}
    with raises(f"data.path={path} has no split 'test': it has train"):
        texts(source, "test")


@pytest.mark.parametrize(
    ("valid", "test", "message"),
    [
        (-0.1, 0.1, "data.valid_fraction=-0.1 is not in [0, 1)"),
        (0.1, 1, "data.test_fraction=1 is not in [0, 1)"),
        (0.5, float("nan"), "data.test_fraction=nan is not in [0, 1)"),
        (
            0.5,
            0.5,
            "data.valid_fraction=0.5 and data.test_fraction=0.5 leave nothing to train on: "
            "lower them",
        ),
    ],
)
def test_impossible_fractions(valid: float, test: float, message: str) -> None:
    with raises(message):
        Pydocs(valid_fraction=valid, test_fraction=test)


@pytest.mark.parametrize("split", ["train", "valid", "test"])
@pytest.mark.parametrize(
    ("text", "unit", "message"),
    [
        (
            "one",
            "file",
            "1 document is too few to cut by its hash (1 train, 0 valid, 0 test): cut files finer "
            "with data.unit=paragraph, line or heading (and data.heading=PATTERN, as ^#); or "
            "set data.test_fraction=0 and data.valid_fraction=0 to go without, or name other text "
            "with data.test_path and data.valid_path",
        ),
        (
            "x4\n\nx6",
            "paragraph",
            "2 documents are too few to cut by their hash (0 train, 1 valid, 1 test): set "
            "data.test_fraction=0 and data.valid_fraction=0 to go without, or name other text with "
            "data.test_path and data.valid_path",
        ),
        (
            "x4\n\nx6\n\nx7",
            "paragraph",
            "3 documents are too few to cut by their hash (0 train, 2 valid, 1 test): lower "
            "data.valid_fraction and data.test_fraction",
        ),
    ],
)
def test_too_few_documents_to_cut(
    tmp_path: Path, split: str, text: str, unit: Any, message: str
) -> None:
    path = written(tmp_path / "a.txt", text)
    with raises(f"data.path={path}: {message}"):
        texts(Files(str(path), unit=unit), split)


# ---- files


@pytest.mark.parametrize(
    ("unit", "heading", "expected"),
    [
        ("file", None, {"a.txt": "x\n\n# A\ny\n\n# B\nz"}),
        ("line", None, {"a.txt:1": "x", "a.txt:3": "# A", "a.txt:4": "y", "a.txt:6": "# B"}),
        ("paragraph", None, {"a.txt:1": "x", "a.txt:3": "# A\ny", "a.txt:6": "# B\nz"}),
        ("heading", "^# ", {"a.txt:1": "x\n\n# A\ny\n\n", "a.txt:6": "# B\nz"}),
    ],
)
def test_units_of_a_file(
    tmp_path: Path, unit: Any, heading: str | None, expected: dict[str, str]
) -> None:
    path = written(tmp_path / "a.txt", "x\r\n\r\n# A\r\ny\r\n\r\n# B\r\nz")
    source = Files(str(path), unit=unit, heading=heading, valid_fraction=0, test_fraction=0)
    found = {document.id: document.text for document in source.documents("train")}
    if unit == "line":
        expected["a.txt:7"] = "z"
    assert found == expected


def test_files_with_a_path_for_each_split(tmp_path: Path) -> None:
    for name in ("train 1, [a]/x.txt", "train 1, [a]/y.txt", "v.txt.gz"):
        written(tmp_path / name, "")
    written(tmp_path / "train 1, [a]/x.txt", "\n\n".join(TEXTS))
    (tmp_path / "v.txt.gz").write_bytes(gzip.compress(b"for validation"))
    path, valid = str(tmp_path / "train 1, [a]"), str(tmp_path / "v.txt.gz")
    source = Files(path, unit="paragraph", valid_path=valid)
    splits = all_texts(source)
    assert splits["valid"] == ["for validation"]
    assert sorted(splits["train"] + splits["test"]) == sorted(TEXTS)
    assert source.describe() == {
        "source": "Files",
        "unit": "paragraph",
        "heading": None,
        "splits": ["train", "valid", "test"],
        "cut_by_hash": {"test": 0.1},
        "fingerprint": source.fingerprint(),
        "paths": {"train": path, "valid": valid},
        "num_files": {"train": 2, "valid": 1},
        "num_bytes": {"train": len("\n\n".join(TEXTS)), "valid": Path(valid).stat().st_size},
    }


def test_a_directory_that_has_its_own_splits(tmp_path: Path) -> None:
    for name in ("train-00000-of-00002", "train-00001-of-00002", "validation", "test/part"):
        jsonl(tmp_path / f"{name}.jsonl", [name])
    written(tmp_path / "README.md", "not a record")
    source = Jsonl(str(tmp_path))
    assert all_texts(source) == {
        "train": ["train-00000-of-00002", "train-00001-of-00002"],
        "valid": ["validation"],
        "test": ["test/part"],
    }
    assert source.describe()["cut_by_hash"] == {}
    message = (
        f"data.path={tmp_path} has its own splits but other files too (README.md): give the "
        "splits as data.path, data.valid_path and data.test_path, or all files as a glob"
    )
    with raises(message):
        Files(str(tmp_path))
    assert Files(f"{tmp_path}/*").describe()["num_files"] == {"train": 4}


def test_a_file_belongs_to_one_split(tmp_path: Path) -> None:
    file = written(tmp_path / "a.txt", "x")
    message = (
        f"data.test_path={tmp_path}/*.txt and data.path={tmp_path} both name {file}: "
        "a file belongs to one split"
    )
    with raises(message):
        Files(str(tmp_path), test_path=f"{tmp_path}/*.txt")


def test_empty_documents_are_skipped_and_counted_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = ["", "one", " \n", "two words\n"]
    path = str(jsonl(tmp_path / "a.jsonl", rows))
    source = Jsonl(path, valid_fraction=0, test_fraction=0)
    with caplog.at_level(logging.WARNING):
        assert texts(source, "train") == texts(source, "train") == ["one", "two words\n"]
    assert caplog.messages == [f"data.path={path}: skipped 2 empty documents of train"]


@pytest.mark.parametrize("text", ["", "\ufeff", "\n \n", None])
def test_an_empty_corpus(tmp_path: Path, text: str | None) -> None:
    path = written(tmp_path / "a.txt", text or "")
    num_empty = 1
    if text is None:
        path, num_empty = tmp_path / "a.txt.gz", 1
        path.write_bytes(gzip.compress(b""))
    message = (
        f"data.path={path} has no documents for train ({num_empty} empty ones): "
        "name text that has words"
    )
    with raises(message):
        texts(Files(str(path)), "train")


# ---- tables, lists of paths, encodings, names of splits


def table(path: Path, rows: list[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        delimiter = "\t" if path.suffix == ".tsv" else ","
        csv.writer(file, delimiter=delimiter).writerows([["n", "text"], *enumerate(rows)])
    return path


@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
def test_rows_of_a_table_are_cut_as_those_of_json(tmp_path: Path, name: str) -> None:
    found = all_texts(Csv(str(table(tmp_path / name, TEXTS))))
    assert found == all_texts(Jsonl(str(jsonl(tmp_path / "a.jsonl", TEXTS))))
    ids = [d.id for d in Csv(str(tmp_path), valid_fraction=0, test_fraction=0).documents("train")]
    assert ids[:2] == [f"{name}:2", f"{name}:4"]
    assert len(set(ids)) == len(TEXTS)


def test_a_directory_of_tables_has_its_own_splits(tmp_path: Path) -> None:
    for split in ("train", "dev", "test"):
        table(tmp_path / f"{split}.csv", [split])
    (tmp_path / "README.md").touch()
    assert all_texts(Csv(str(tmp_path))) == {"train": ["train"], "valid": ["dev"], "test": ["test"]}


def test_a_list_of_paths(tmp_path: Path) -> None:
    for name in ("b/x.txt", "a/x.txt", "v1.txt", "v2.txt"):
        written(tmp_path / name, name)
    path = [f"{tmp_path}/b/x.txt", f"{tmp_path}/a", f"{tmp_path}/a/*.txt"]
    valid = [f"{tmp_path}/v1.txt", f"{tmp_path}/v2.txt"]
    source = Files(path, valid_path=valid, test_fraction=0)
    assert [*source.documents("train")] == [
        Document("b/x.txt", "b/x.txt"),
        Document("a/x.txt", "a/x.txt"),
    ]
    assert texts(source, "valid") == ["v1.txt", "v2.txt"]
    assert source.describe()["paths"] == {"train": path, "valid": valid}
    turned = Files(path[::-1], valid_path=valid, test_fraction=0)
    assert texts(turned, "train") == ["a/x.txt", "b/x.txt"]
    assert turned.fingerprint() != source.fingerprint()
    message = (
        f"data.valid_path=[{valid[1]},{path[0]}] and data.path=[{','.join(path)}] both name "
        f"{path[0]}: a file belongs to one split"
    )
    with raises(message):
        Files(path, valid_path=[valid[1], path[0]])


@pytest.mark.parametrize("encoding", ["utf-16", "latin-1", "cp1252"])
@pytest.mark.parametrize("unit", ["file", "paragraph", "line"])
def test_an_encoding_makes_no_difference_to_documents(
    tmp_path: Path, encoding: str, unit: Any
) -> None:
    text = "\n\n".join(f"na\u00efve {text}" for text in TEXTS)
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    (tmp_path / "a" / "x.txt").write_bytes(text.replace("\n", "\r\n").encode(encoding))
    (tmp_path / "b" / "x.txt").write_bytes(text.encode())
    keys = {"unit": unit, "valid_fraction": 0, "test_fraction": 0}
    found = Files(str(tmp_path / "a"), encoding=encoding, **keys)
    expected = Files(str(tmp_path / "b"), **keys)
    assert [*found.documents("train")] == [*expected.documents("train")]


def test_the_fingerprint_depends_on_the_encoding_not_on_its_name(tmp_path: Path) -> None:
    path = str(written(tmp_path / "a.txt", "abc"))
    made = {
        name: Files(path, encoding=name).fingerprint()
        for name in ("utf-8", "UTF8", "latin-1", "iso8859-1", "cp1252")
    }
    assert made["utf-8"] == made["UTF8"] == Files(path).fingerprint()
    assert made["latin-1"] == made["iso8859-1"]
    assert len(set(made.values())) == 3
    assert Files(path, encoding="latin1").describe()["encoding"] == "iso8859-1"


@pytest.mark.parametrize(
    "names",
    [
        ("train.txt", "dev.txt", "test.txt"),
        ("wiki.train.tokens", "wiki.valid.tokens", "wiki.test.tokens"),
        ("train_10M/a.train", "dev/a.dev", "test/a.test"),
        ("data/train/a.txt", "data/val/a.txt", "data/test/a.txt"),
        ("ptb-train.txt", "ptb-validation.txt", "ptb-test.txt"),
    ],
)
def test_splits_by_name(tmp_path: Path, names: tuple[str, ...]) -> None:
    for name in names:
        written(tmp_path / name, name)
    source = Files(str(tmp_path))
    assert all_texts(source) == {
        split: [name] for split, name in zip(("train", "valid", "test"), names, strict=True)
    }


def test_names_that_state_splits_in_vain_are_remarked_on(tmp_path: Path) -> None:
    for name in ("train.txt", "valid.txt", "test.txt"):
        written(tmp_path / name, "\n".join(TEXTS))
    for path in (f"{tmp_path}/train.txt", f"{tmp_path}/*.txt"):
        (remark,) = Files(path, unit="line").remarks({})
        assert remark == (
            f"data.path={path}: test and valid are cut out of it by a hash, though names state "
            "splits (test.txt, train.txt, valid.txt); give their directory as data.path to take "
            "them so"
        )
    assert Files(str(tmp_path), unit="line").remarks({}) == []
    (tmp_path / "test.txt").unlink()  # the directory is named already
    assert Files(str(tmp_path), unit="line").remarks({}) == []
    for keys in (
        {"valid_fraction": 0, "test_fraction": 0},
        {"valid_path": f"{tmp_path}/valid.txt"},
    ):
        assert Files(f"{tmp_path}/train.txt", **keys).remarks({}) == []
    assert Files(str(written(tmp_path / "b" / "book.txt", "x"))).remarks({}) == []


def test_lopsided_splits_are_remarked_on(tmp_path: Path) -> None:
    path = str(jsonl(tmp_path / "a.jsonl", TEXTS))
    even = {
        "train": TokenCount(800, "a:1", 9),
        "valid": TokenCount(120, "a:2", 9),
        "test": TokenCount(80, "a:3", 9),
    }
    assert Jsonl(path).remarks(even) == []
    assert Jsonl(path).remarks({"test": even["test"]}) == []
    few = even | {"train": TokenCount(99_800, "a.jsonl:7", 60_000)}
    assert Jsonl(path).remarks(few) == [
        f"data.path={path}: the tokens are train 99,800 (99.8%), valid 120 (0.1%), test 80 "
        "(0.1%), where test 10% and valid 10% are cut by a hash of each document, whatever its "
        "length; the longest (a.jsonl:7) has 60.0% of all: name text for it with data.test_path "
        "and data.valid_path"
    ]
    assert (
        "(a.txt) has 60.0% of all: cut files finer with data.unit=paragraph, line or "
        in (Files(path).remarks(even | {"train": TokenCount(800, "a.txt", 600)})[0])
    )
    assert Files(path, unit="line", valid_fraction=0, test_fraction=0).remarks(few) == []
    assert (
        Pydocs()
        .remarks(even | {"valid": TokenCount(1, "x", 1)})[0]
        .endswith("has 1.0% of all: change data.valid_fraction")
    )


# ---- fingerprints

Make = Callable[..., Source]


def files_of(directory: Path, **keys: Any) -> Source:
    return Files(str(directory), **keys)


def test_the_fingerprint_changes_with_content_and_settings_only(tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt"):
        written(tmp_path / "one" / name, name)
        written(tmp_path / "elsewhere" / "two" / name, name)
    first = files_of(tmp_path / "one").fingerprint()
    assert re.fullmatch("[0-9a-f]{64}", first)
    assert files_of(tmp_path / "elsewhere" / "two").fingerprint() == first
    assert files_of(tmp_path / "one" / "*.txt").fingerprint() == first
    changed = [
        files_of(tmp_path / "one", unit="line"),
        files_of(tmp_path / "one", unit="heading", heading="a"),
        files_of(tmp_path / "one", unit="heading", heading="b"),
        files_of(tmp_path / "one", valid_fraction=0.2),
        files_of(tmp_path / "one", test_fraction=0),
        files_of(tmp_path / "one" / "a.txt"),
        files_of(tmp_path / "one" / "a.txt", valid_path=str(tmp_path / "one" / "b.txt")),
        files_of(tmp_path / "one" / "a.txt", test_path=str(tmp_path / "one" / "b.txt")),
        Jsonl(str(tmp_path / "one" / "*")),
    ]
    found = [first, *(source.fingerprint() for source in changed)]
    written(tmp_path / "one" / "b.txt", "c.txt")
    found.append(files_of(tmp_path / "one").fingerprint())
    (tmp_path / "one" / "b.txt").rename(tmp_path / "one" / "c.txt")
    found.append(files_of(tmp_path / "one").fingerprint())
    assert len(set(found)) == len(found)


@given(st.lists(st.text("ab\n", max_size=4), max_size=3), st.lists(st.text("ab\n", max_size=4)))
def test_equal_fingerprints_are_equal_files(
    tmp_path_factory: pytest.TempPathFactory, one: list[str], two: list[str]
) -> None:
    found = []
    for rows in (one, two):
        directory = tmp_path_factory.mktemp("files")
        written(directory / "0.txt", "x")
        for n, row in enumerate(rows, 1):
            written(directory / f"{n}.txt", row)
        found.append(files_of(directory).fingerprint())
    assert (found[0] == found[1]) == (one == two)


def test_generated_sources_have_one_fingerprint_for_one_setting() -> None:
    assert Pydocs().fingerprint() == Pydocs().fingerprint()
    assert Pydocs().fingerprint() != Pydocs(test_fraction=0).fingerprint()
    few = {"num_train": 9, "num_valid": 9, "num_test": 9}
    seeds = [MemoryProbe(corpus_seed=seed, **few).fingerprint() for seed in (1, 1, 2)]
    assert seeds[0] == seeds[1] != seeds[2]


# ---- Python's own documents


def test_pydocs_are_about_495_documents_and_280_thousand_words() -> None:
    source = Pydocs()
    documents = [document for split in source.splits for document in source.documents(split)]
    assert 440 <= len(documents) <= 560
    assert 250_000 <= sum(len(document.text.split()) for document in documents) <= 320_000
    ids = [document.id for document in documents]
    assert len(set(ids)) == len(ids)
    assert {"topic/lambda", "module/argparse", "module/asyncio"} < set(ids)
    found = {document.id: document.text for document in documents}
    assert json.__doc__.split()[0] in found["module/json"]  # type: ignore[union-attr]
    assert "Serialize ``obj`` to a JSON formatted ``str``." in found["module/json"]
    assert not any("\r" in text for text in found.values())
    assert str(source.describe()["python"]).endswith(sys.version.split()[0])


def test_pydocs_import_nothing_that_they_describe() -> None:
    program = (
        "import sys; from lmkit.corpus import Pydocs; n = len(list(Pydocs().documents('test')));"
        "heavy = {'antigravity', 'this', 'tkinter', 'turtle', 'pyarrow', 'datasets', 'torch'};"
        "assert n and not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True)


def test_a_python_without_its_library_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    message = (
        f"data=pydocs: this Python has no {tmp_path}/pydoc_data/topics.py: install the whole of "
        "Python, or take data=files with a text of yours"
    )
    with raises(message):
        texts(Pydocs(), "train")


# ---- WikiText

ARTICLES = " \n = One = \n \n text <unk> \n = = Part = = \n more \n = Two = \n x = y = \n"


@pytest.mark.parametrize("pattern", ["{}.txt", "{}.tokens", "{}.raw", "wiki.{}.tokens"])
def test_wikitext_articles(tmp_path: Path, pattern: str) -> None:
    for split in ("train", "valid", "test"):
        written(tmp_path / pattern.format(split), ARTICLES)
    source = WikiText(str(tmp_path))
    first = Document(f"{pattern.format('valid')}:1", ARTICLES[: ARTICLES.index(" = Two")])
    second = Document(f"{pattern.format('valid')}:7", " = Two = \n x = y = \n")
    assert list(source.documents("valid")) == [first, second]
    assert source.splits == ("train", "valid", "test")


def test_wikitext_files_are_missing_or_twice(tmp_path: Path) -> None:
    file = written(tmp_path / "w" / "train.txt", ARTICLES)
    written(tmp_path / "w" / "valid.txt", ARTICLES)
    candidates = "test.txt, test.tokens, test.raw, wiki.test.tokens, wiki.test.raw"
    directory = file.parent
    with raises(
        f"data.path={directory} has none of {candidates}: {directory} has train.txt, valid.txt; "
        "data=wikitext needs one file for test"
    ):
        WikiText(str(directory))
    written(directory / "wiki.valid.raw", ARTICLES)
    with raises(
        f"data.path={directory} has both valid.txt and wiki.valid.raw: {directory} has valid.txt; "
        "data=wikitext needs one file for valid"
    ):
        WikiText(str(directory))
    with raises(
        f"data.path={file} is a file: data=wikitext takes the directory of train, valid and "
        "test; for one file take data=files data.unit=heading 'data.heading=^ = [^=].* = $'"
    ):
        WikiText(str(file))
    with raises(f"data.path={tmp_path}/v does not exist; {tmp_path} has w"):
        WikiText(f"{tmp_path}/v")


def test_wikitext_2_is_whole(wikitext: Path) -> None:
    source = WikiText(str(wikitext))
    counts = {"train": (629, 2_088_628), "valid": (60, 217_646), "test": (62, 245_569)}
    for split, (num_documents, num_tokens) in counts.items():
        documents = texts(source, split)
        text = (wikitext / f"{split}.txt").read_text()
        assert "".join(documents) == text
        assert len(documents) == num_documents
        assert len(text.split()) + text.count("\n") == num_tokens


# ---- parquet and the hub


def test_parquet_rows_are_cut_by_hash(tmp_path: Path) -> None:
    table = pyarrow.table({"body": TEXTS})
    parquet.write_table(table, tmp_path / "a.parquet")
    splits = all_texts(Parquet(str(tmp_path), column="body"))
    assert sorted(itertools.chain(*splits.values())) == sorted(TEXTS)
    assert splits == all_texts(Jsonl(str(jsonl(tmp_path / "a.jsonl", TEXTS))))


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub out of reach, and a cache of the test's own."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.mark.usefixtures("offline")
def test_hub_rows_are_documents(tmp_path: Path) -> None:
    for split, rows in {"train": TEXTS, "validation": ["v1", "", None, "v2"]}.items():
        parquet.write_table(pyarrow.table({"text": rows}), tmp_path / f"{split}.parquet")
    files = {name: str(tmp_path / f"{name}.parquet") for name in ("train", "validation")}
    source = HuggingFace("parquet", data_files=files)
    assert source.splits == ("train", "valid", "test")
    splits = all_texts(source)
    assert splits["valid"] == ["v1", "v2"]
    assert sorted(splits["train"] + splits["test"]) == sorted(TEXTS)
    assert [document.id for document in source.documents("valid")] == ["valid:1", "valid:4"]
    assert source.fingerprint() == HuggingFace("parquet", data_files=files).fingerprint()
    assert source.describe()["cut_by_hash"] == {"test": 0.1}

    rows = [line.removesuffix("\n") for line in ARTICLES.splitlines()]
    parquet.write_table(pyarrow.table({"text": rows}), tmp_path / "lines.parquet")
    lines = {"train": str(tmp_path / "lines.parquet")}
    articles = HuggingFace(
        "parquet", data_files=lines, heading="^ = [^=]", valid_fraction=0, test_fraction=0
    )
    assert [len(text) for text in texts(articles, "train")] == [ARTICLES.index(" = Two"), 20]
    assert articles.fingerprint() != source.fingerprint()


@pytest.mark.usefixtures("offline")
def test_bad_hub_requests(tmp_path: Path) -> None:
    parquet.write_table(pyarrow.table({"body": ["x"], "n": [1]}), tmp_path / "a.parquet")
    file = str(tmp_path / "a.parquet")
    with raises("data.name=parquet, train has no column 'text': it has body, n; set data.column"):
        texts(HuggingFace("parquet", data_files=file), "train")
    with raises("data.name=parquet, train, row 1 is int, not a string"):
        texts(HuggingFace("parquet", data_files=file, column="n"), "train")
    with raises(
        "data.name=parquet has no split train: it has test; name files by split with "
        "data.data_files"
    ):
        texts(HuggingFace("parquet", data_files={"test": file}, column="body"), "test")
    with pytest.raises(UserError, match=r"^data\.name=no/such: `datasets` cannot load it: "):
        texts(HuggingFace("no/such"), "train")
    text = str(written(tmp_path / "a.txt", "\n\n".join(TEXTS)))
    with raises(
        "data.name=text is plain text, whose rows are lines: set data.heading to the pattern "
        "that opens a document ('' for one a line), or take data=files"
    ):
        texts(HuggingFace("text", data_files=text), "train")
    lines = HuggingFace("text", data_files=text, heading="", valid_fraction=0, test_fraction=0)
    assert texts(lines, "train")[:2] == [f"{line}\n" for line in TEXTS[0].splitlines()]


def test_the_hub_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "datasets" else find(name)
    )
    with raises(
        "data=huggingface needs the package `datasets`: pip install 'recurrent-lmkit[huggingface]'"
    ):
        HuggingFace("some/name")


# ---- the memory probe


def test_a_probe_repeats_its_countries_at_the_distance_in_its_id() -> None:
    source = MemoryProbe(num_test=224)
    seen = Counter[int]()
    for document in source.documents("test"):
        words = document.text.split(" ")
        distance = memory_probe.probe_distance(document.id)
        seen[distance] += 1
        needed = memory_probe.needed_words(document.id)
        assert needed == (len(words) - 2, len(words) - 1)
        for index in needed:
            assert words[index] == words[index - distance]
        countries = [index for index, word in enumerate(words) if word in memory_probe.COUNTRIES]
        assert countries == [0, 1, *needed]
        assert words[0] != words[1]
        assert words[distance - 3 : distance] == ["the", "two", "countries"]
    assert seen == dict.fromkeys(range(5, 61), 4)


def test_train_has_a_distance_d_as_often_as_one_over_d() -> None:
    source = MemoryProbe(num_train=20_000, min_distance=6, max_distance=12)
    seen = Counter(memory_probe.probe_distance(d.id) for d in source.documents("train"))
    total = sum(1 / distance for distance in range(6, 13))
    for distance in range(6, 13):
        assert seen[distance] == pytest.approx(20_000 / distance / total, rel=0.08)


def test_nothing_between_tells_of_the_countries() -> None:
    """Every country is as likely in either place, whatever the filler before the sentence."""
    source = MemoryProbe(num_train=12_000, num_countries=4, max_distance=9)
    pairs = Counter[tuple[str, str]]()
    after: dict[str, Counter[str]] = {}
    for text in texts(source, "train"):
        words = text.split()
        pairs[words[0], words[1]] += 1
        after.setdefault(words[-6], Counter())[words[-2]] += 1
    assert len(pairs) == 12
    assert all(800 < count < 1200 for count in pairs.values())
    for filler in memory_probe.FILLER:
        counts = after[filler]
        assert all(0.15 < counts[c] / counts.total() < 0.35 for c in memory_probe.COUNTRIES[:4])


def test_probe_text_is_fixed_by_its_seed() -> None:
    sources = [MemoryProbe(corpus_seed=seed, min_distance=8) for seed in (1, 2)]
    assert [next(source.documents("valid")) for source in sources] == [
        Document("valid/0/distance=8", "spain italy train then went the two countries spain italy"),
        Document("valid/0/distance=8", "japan india went old old the two countries japan india"),
    ]
    splits = [texts(MemoryProbe(min_distance=30), split) for split in ("train", "valid", "test")]
    assert not set(splits[0]) & (set(splits[1]) | set(splits[2]))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"num_valid": 0}, "data.num_valid=0 is not at least 1"),
        ({"num_countries": 17}, "data.num_countries=17 is not between 2 and 16"),
        (
            {"min_distance": 4},
            "data.min_distance=4 and data.max_distance=60: the distances go up, from 5 words at "
            "least",
        ),
        (
            {"min_distance": 9, "max_distance": 8},
            "data.min_distance=9 and data.max_distance=8: the distances go up, from 5 words at "
            "least",
        ),
    ],
)
def test_impossible_probes(keys: dict[str, int], message: str) -> None:
    with raises(message):
        MemoryProbe(**keys)
