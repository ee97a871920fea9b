"""README says what is true: its commands run, its configs pass the check."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lmkit.config.check import check
from lmkit.config.compose import compose
from lmkit.sweep import search

REPOSITORY = Path(__file__).resolve().parents[2]
README = (REPOSITORY / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)
COMMANDS = [
    line
    for language, block in BLOCKS
    if language == "sh"
    for line in block.splitlines()
    if line.startswith("lmkit ")
]
SWEEPS = [c for c in COMMANDS if c.startswith(("lmkit sweep", "lmkit train -m"))]
TRAININGS = [
    c for c in COMMANDS if c.startswith("lmkit train") and "--cfg" not in c and c not in SWEEPS
]
# A dashboard serves until it is stopped; the probe trains for minutes.
UNENDING = ("lmkit dashboard", "lmkit analyze probe", "lmkit doctor model.hiden_size")
OTHERS = [c for c in COMMANDS if c not in TRAININGS + SWEEPS and not c.startswith(UNENDING)]


def words(command: str) -> list[str]:
    return shlex.split(command, comments=True)[2:]


def test_it_is_short_and_shows_a_picture():
    assert len(README.splitlines()) <= 150
    for picture in re.findall(r"!\[.*?\]\((.*?)\)", README):
        assert (REPOSITORY / picture).is_file()
    for linked in re.findall(r"(?<!!)\[.*?\]\((?!http)(.*?)\)", README):
        assert (REPOSITORY / linked).exists()


def test_ci_runs_the_test_command():
    assert 'pip install -e ".[dev]" && pytest\n' in README
    assert 'pip install -q -e ".[dev]" && pytest' in (REPOSITORY / ".ci" / "run").read_text()


@pytest.fixture(scope="module")
def place(tmp_path_factory, text) -> Path:
    """A directory with the files that README's trainings name."""
    place = tmp_path_factory.mktemp("readme")
    (place / "texts").mkdir()
    shutil.copy(text, place / "texts")
    for name in ("dump.jsonl.zst", "part.parquet", "reviews.csv"):
        (place / name).touch()
    (place / "wikitext-2").mkdir()
    for split in ("train", "valid", "test"):
        shutil.copy(text, place / "wikitext-2" / f"{split}.txt")
    return place


@pytest.mark.parametrize("command", TRAININGS)
def test_every_training_passes_the_check(command, place, monkeypatch):
    monkeypatch.chdir(place)
    check(compose(words(command)))


@pytest.mark.parametrize("command", SWEEPS)
def test_every_sweep_passes_the_check(command, place, monkeypatch):
    monkeypatch.chdir(place)
    arguments = [word for word in words(command) if word != "-m"]
    sweep = search.split(arguments, ("num_trials",))
    for number, dimension in enumerate(sweep.dimensions):
        for value in dimension.examples():
            point = [each.examples()[0] for each in sweep.dimensions]
            point[number] = value
            check(compose(sweep.arguments(point)))


@pytest.fixture(scope="module")
def home(tmp_path_factory, finished) -> Path:
    """A directory whose outputs hold a finished run."""
    home = tmp_path_factory.mktemp("home")
    shutil.copytree(finished[0].parents[1], home / "outputs", symlinks=True)
    (home / "stimuli.csv").write_text("item,sentence\n1,the end\n")
    (home / "blimp").mkdir()
    pair = {"sentence_good": "The cat runs.", "sentence_bad": "The cat run.", "UID": "agreement"}
    (home / "blimp" / "agreement.jsonl").write_text(f"{json.dumps(pair)}\n")
    return home


@pytest.mark.parametrize("command", OTHERS)
def test_every_other_command_runs(command, home):
    arguments = shlex.split(command, comments=True)[1:]
    if arguments[0] == "resume":
        arguments = ["resume", "whole", "trainer.max_epochs=4"]
    done = subprocess.run(
        [sys.executable, "-m", "lmkit", *arguments],
        cwd=home,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_the_doctor_finds_the_mistake_it_is_shown_with(place):
    done = subprocess.run(
        [sys.executable, "-m", "lmkit", "doctor", "model.hiden_size=400"],
        cwd=place,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "did you mean model.hidden_size?" in done.stderr


def test_the_python_runs(home):
    (block,) = (block for language, block in BLOCKS if language == "python")
    done = subprocess.run([sys.executable, "-c", block], cwd=home, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) >= 3
