"""docs/extending.md: its files, in an empty directory, do what it says by its commands."""

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from documented import commands, sections, shell, write_files
from journey import LIMIT, lmkit

from lmkit.command import commands as known_commands
from lmkit.head import FullSoftmax
from lmkit.model import Embedding

SECTIONS = sections("extending.md")
WHOLE = "\n".join(SECTIONS.values())
ALLOW = commands(SECTIONS[""])
INSTALLED = "A package that is installed"
# Commands in one process: what takes the time is to import torch.
SEVERAL = """
import json, shlex, sys
from lmkit.cli import main
codes = {line: main(shlex.split(line)[1:]) for line in json.loads(sys.argv[1])}
print(json.dumps(codes), file=sys.stderr)
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, text: Path) -> Path:
    """A directory with the files of the document, and with texts."""
    place = tmp_path_factory.mktemp("extending")
    write_files(WHOLE, place)
    paragraphs = text.read_text().split("\n\n")
    (place / "text.txt").write_text("\n\n".join(f"{p} in 1984" for p in paragraphs[:25]))
    with sqlite3.connect(place / "articles.db") as database:
        database.execute("create table articles (text)")
        database.executemany(
            "insert into articles values (?)", [(each,) for each in paragraphs[:60]]
        )
    return place


def together(lines: list[str], place: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Commands in one process; its last line on stderr has the exit code of each."""
    done = subprocess.run(
        [sys.executable, "-c", SEVERAL, json.dumps(lines)],
        cwd=place,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def several(place: Path) -> subprocess.CompletedProcess[str]:
    """All commands but those that have a test of their own."""
    apart = {"", "A model", INSTALLED}
    lines = [line for title in SECTIONS for line in commands(SECTIONS[title]) if title not in apart]
    return together(lines, place, **dict(line.removeprefix("export ").split("=") for line in ALLOW))


def runs(place: Path, **wanted: str) -> Iterator[tuple[Path, str]]:
    """The runs whose config has a class, and what it has."""
    for run in sorted((place / "outputs").glob("quick/*")):
        config = (run / "config.yaml").read_text()
        if all(target in config for target in wanted.values()):
            yield run, config


def test_a_model(place: Path) -> None:
    out = shell([*ALLOW, *commands(SECTIONS["A model"])], place)
    assert "Minimal gated units (Zhou et al. 2016)" in out
    assert "model.hidden_size=200" in out
    ((run, _),) = runs(place, model="mine.cell.MinimalGated")
    losses = [
        row["val/nll"]
        for row in map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
        if "val/nll" in row
    ]
    assert losses == sorted(losses, reverse=True)
    assert len(losses) == 3


def test_all_its_commands_do_what_they_should(several: subprocess.CompletedProcess[str]) -> None:
    codes = json.loads(several.stderr.splitlines()[-1])
    assert len(codes) == 9
    assert {line: code for line, code in codes.items() if code} == {commands(WHOLE)[-1]: 2}
    assert "head.smoothing=2: must be at least 0 and below 1" in several.stderr


@pytest.mark.usefixtures("several")
def test_each_is_in_the_run_that_it_was_named_in(place: Path) -> None:
    for target in (
        "head.SmoothedSoftmax",
        "source.Sqlite",
        "tokenizer.DigitlessWords",
        "callback.StopAt",
        "optim.Lion",
        "regularizer.NormStabilizer",
    ):
        ((run, config),) = runs(place, target=f"mine.{target}")
        summary = json.loads((run / "summary.json").read_text())
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        assert summary["test/nll"] > 0
        epochs = [row for row in rows if "val/nll" in row]
        assert len(epochs) == (1 if "StopAt" in target else 3)
        if "Lion" in target:
            assert "mine.optim.InverseSquareRoot" in config
        if "Norm" in target:
            assert all(row["train/norm"] > 0 for row in rows if "train/nll" in row)
        if "Digitless" in target:
            saved = json.loads((run / "tokenizer.json").read_text())
            assert saved["name"] == "mine.tokenizer.DigitlessWords"
            assert "0000" in saved["vocabulary"]


def test_a_command(several: subprocess.CompletedProcess[str]) -> None:
    assert len([line for line in several.stdout.splitlines() if " nats  '" in line]) == 3


@pytest.mark.parametrize("tied", [False, True])
def test_the_loss_of_the_head_has_the_gradients_of_lmkits(
    place: Path, monkeypatch: pytest.MonkeyPatch, tied: bool
) -> None:
    monkeypatch.syspath_prepend(place)
    from mine.head import SmoothedSoftmax

    tokens, targets = torch.randint(11, (2, 2, 5))
    weight = torch.rand(2, 5) * (torch.rand(2, 5) < 0.7)
    found = []
    for make in (FullSoftmax, partial(SmoothedSoftmax, smoothing=0)):
        torch.manual_seed(0)
        embedding = Embedding(11, 6, None, tied=tied)
        head = make(6, 11, embedding=embedding)
        loss, nll = head.loss(embedding(tokens), targets, weight)
        loss.backward()
        found.append([loss, nll, *(each.grad for each in (embedding.weight, *head.parameters()))])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one.float(), other.float())


def test_a_package_that_is_installed(place: Path, tmp_path: Path) -> None:
    """Nothing is allowed by a variable, and the package lies in no directory of the user's."""
    install, *lines = commands(SECTIONS[INSTALLED])
    assert install == "pip install ."
    site = tmp_path / "site"
    offline = f"--no-build-isolation --no-index --no-deps --target {site}"
    shell([f"{sys.executable} -m {install} {offline}"], place)
    (tmp_path / "text.txt").write_text((place / "text.txt").read_text())
    out = shell(lines, tmp_path, PYTHONPATH=str(site), LMKIT_ALLOW="")
    assert "of other packages:\n  hardest    Print the tokens of a text that the model" in out
    assert "minimal_gated  Minimal gated units" in out
    assert len([line for line in out.splitlines() if " nats  '" in line]) == 5
    known = {
        "lmkit --complete 'lmkit train model=min'": "model=minimal_gated ",
        "lmkit --complete 'lmkit har'": "hardest ",
        "lmkit --complete 'lmkit hardest latest num_'": "num_tokens=",
        "lmkit train model=minimal_gated --cfg job --package model": "num_layers: 2  # by default",
        "lmkit train --info searchpath model=minimal_gated seed=2": f"file://{site}/mine/conf",
    }
    out = together([*known], tmp_path, PYTHONPATH=str(site)).stdout
    assert all(words in out for words in known.values())


def test_what_only_lies_in_the_working_directory_is_not_installed(tmp_path: Path) -> None:
    """As `pip install` would leave it, but where `python -m lmkit` looks before it looks there."""
    (tmp_path / "evil.py").write_text("raise SystemExit('imported')\n")
    about = tmp_path / "evil-1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: evil\nVersion: 1\n")
    (about / "entry_points.txt").write_text(
        "[lmkit.packages]\nevil = evil\n[lmkit.commands]\nsteal = evil:steal\n"
    )
    err = lmkit("train", "model._target_=evil.Model", cwd=tmp_path, code=2).stderr
    assert "evil.Model is not allowed" in err
    assert "if evil is a package that you trust: export LMKIT_ALLOW=evil" in err
    assert "lmkit steal: no such command" in lmkit("steal", cwd=tmp_path, code=2).stderr
    assert "steal" not in lmkit("--help", cwd=tmp_path).stdout


def test_a_command_that_cannot_be_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    about = tmp_path / "other-1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1\n")
    (tmp_path / "other_commands.py").write_text("def there(run, *, n: int = 1): '''Do it.'''\n")
    (about / "entry_points.txt").write_text(
        "[lmkit.commands]\ntrain = other_commands:there\ngone = other_commands:gone\n"
        "lost = nowhere_at_all:lost\nthere = other_commands:there\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    found = known_commands()
    assert found["train"].module == "lmkit.commands.train"
    assert found["there"].purpose == "Do it."
    assert not {"gone", "lost"} & found.keys()
    assert sorted(record.getMessage() for record in caplog.records) == [
        "the command gone of other_commands:gone is left out: other_commands has no function gone",
        "the command lost of nowhere_at_all:lost is left out: nowhere_at_all does not exist; it "
        "must be installed, or lie in the working directory",
        "the command train of other_commands:there is left out: there is one of this name already",
    ]
