"""A preparation in a real process, for tests that end it."""

import contextlib
import subprocess
import sys
from pathlib import Path

import pytest
from pieces import written


def sums(directory: Path) -> dict[str, str]:
    """What a preparation comes to."""
    files = sorted(directory.rglob("manifest.json"))
    return {str(file.relative_to(directory)): file.read_text() for file in files}


WORKER = """
import sys
from pathlib import Path
from lmkit.corpus import Jsonl
from lmkit.system.signals import Stopped, StopSignals
from lmkit.store import prepare
from lmkit.tokenizer import Word

text, place, workers = sys.argv[1:]
source = Jsonl(text, valid_fraction=0, test_fraction=0)
source.piece_bytes = 1
try:
    with StopSignals():
        places = {"store": Path(place), "cache": Path(f"{place}.cache")}
        print(prepare(source, Word(), **places, workers=int(workers)).hash)
except Stopped as stopped:
    sys.exit(stopped.exit_code)
"""


def start_preparing(text: Path, place: Path, workers: int = 2) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WORKER, str(text), str(place), str(workers)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def children(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))
    return []


@pytest.fixture(scope="session")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    line = "some words of no great interest, over and over again \n"
    rows = [[f"{n} {k} {line * 400}" for k in range(40)] for n in range(16)]
    return written(tmp_path_factory.mktemp("large") / "text", rows)


@pytest.fixture(scope="session")
def undisturbed(large: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    place = tmp_path_factory.mktemp("undisturbed") / "store"
    out, err = start_preparing(large, place, workers=1).communicate(timeout=120)
    assert err == ""
    return sums(place) | {"hash": out}
