"""docs/surprisal.md: its example, from sentences to a plot and a file for a mixed model."""

import csv
import importlib.util
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from documented import DOCS, commands, sections, shell, write_files
from trained_run import load, make_run

from lmkit.command import commands as known_commands
from lmkit.inference.table import Layout

SECTIONS = sections("surprisal.md")
EXAMPLE = SECTIONS["An example: from sentences to a mixed model"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A directory with the files of the example and a run, where its commands were typed."""
    if importlib.util.find_spec("pandas") is None:
        pytest.skip("pandas is not installed")
    place = tmp_path_factory.mktemp("surprisal")
    write_files(EXAMPLE, place)
    make_run(place / "outputs", tokenizer="bpe")
    shell(commands(EXAMPLE), place, MPLBACKEND="agg")
    return place


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_its_table_is_what_the_model_says(place):
    rows = rows_of(place / "words.csv")
    items = rows_of(place / "stimuli.csv")
    assert len(rows) == sum(len(item["sentence"].split()) for item in items)
    names = [*items[0], *Layout(spillover=1).columns(load_run(place))]
    assert list(rows[0]) == names
    expected = load_run(place).table(items, spillover=1)
    for row, other in zip(rows, expected, strict=True):
        assert row["word"] == other["word"]
        assert float(row["surprisal"]) == pytest.approx(other["surprisal"], abs=1e-5)


def load_run(place):
    from lmkit.run import Run

    return load(Run.find(str(place / "outputs"), "latest"))


def test_its_plot_and_its_file_for_a_mixed_model(place):
    assert (place / "surprisal.png").read_bytes().startswith(b"\x89PNG")
    words = rows_of(place / "words.csv")
    data = rows_of(place / "for_lme4.csv")
    kept = [row for row in words if row["position"] != "1" and row["unknown"] == "false"]
    assert [(row["item"], row["word"], row["position"]) for row in data] == [
        (row["item"], row["word"], row["position"]) for row in kept
    ]
    for name in ("surprisal", "surprisal_prev1", "length", "length_prev1", "position"):
        values = [float(row[f"z_{name}"]) for row in data]
        assert math.fsum(values) == pytest.approx(0, abs=1e-6)
        before = [float(row[name]) for row in kept]
        assert sorted(range(len(values)), key=values.__getitem__) == sorted(
            range(len(values)), key=before.__getitem__
        )


@pytest.mark.skipif(shutil.which("Rscript") is None, reason="R is not installed")
def test_r_reads_its_table(place):
    program = """
    if (!requireNamespace("readr", quietly = TRUE)) { cat("absent"); quit() }
    words <- readr::read_csv("words.csv", show_col_types = FALSE)
    stopifnot(nrow(readr::problems(words)) == 0)
    cat(nrow(words), sum(is.na(words$surprisal_prev1)), class(words$unknown), class(words$word))
    """
    done = subprocess.run(
        ["Rscript", "-e", program], cwd=place, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    if done.stdout == "absent":
        pytest.skip("readr is not installed")
    rows = rows_of(place / "words.csv")
    firsts = sum(row["position"] == "1" for row in rows)
    assert done.stdout == f"{len(rows)} {firsts} logical character"


def test_its_python_runs(place):
    (code,) = re.findall(r"```python\n(.*?)```", SECTIONS["From Python"], re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nwords.to_csv('again.csv', index=False)"],
        cwd=place,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    found, expected = rows_of(place / "again.csv"), rows_of(place / "words.csv")
    assert [row["surprisal"] for row in found] == [row["surprisal"] for row in expected]


def test_it_names_every_key_and_every_column(place):
    own = known_commands()["score"].own
    shown = {
        name
        for cells in re.findall(r"^\| (`.*?) \|", SECTIONS[""], re.MULTILINE)
        for name in re.findall(r"`(\w+)`", cells)
    }
    assert shown == own.keys() - {"text", "file", "table", "out"}
    columns = re.findall(
        r"`(\w+)`", "".join(re.findall(r"^\| (`.*?) \|", SECTIONS["The columns"], re.MULTILINE))
    )
    assert columns == Layout(spillover=1).columns(load_run(place))
    assert (Path(DOCS) / "surprisal.md").read_text().count("\n") < 200
