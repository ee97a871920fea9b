"""Fixtures and settings that all tests share."""

import logging
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from lmkit.system import redaction

# The models of the tests are tiny: threads that wait for each other only cost time, and here
# also in the processes that the tests start.
os.environ["OMP_NUM_THREADS"] = "1"

pytest_plugins = ["journey", "preparing", "faulty"]

settings.register_profile("lmkit", deadline=None)  # time is never asserted
settings.load_profile("lmkit")

# A module that imports one of these starts processes.
STARTS = "browser|faulty|injected|journey|multiprocessing|preparing|subprocess|trainee"
PROCESSES = re.compile(rf"^(from|import) ({STARTS})\b", re.MULTILINE)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """`quick` are the tests of modules that start no process."""
    starts = {path: bool(PROCESSES.search(path.read_text())) for path in {i.path for i in items}}
    for item in items:
        trains = "finished" in getattr(item, "fixturenames", ())
        if not (starts[item.path] or trains or item.get_closest_marker("slow")):
            item.add_marker("quick")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, which stands still until its one number is set."""
    now = [100.0]
    for name in ("monotonic", "perf_counter"):
        monkeypatch.setattr(time, name, lambda: now[0])
    return now


SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


def _shared(name: str) -> Path:
    if not (SHARED / name).is_dir():
        pytest.skip(f"the shared data is absent: {name}")
    return SHARED / name


@pytest.fixture(scope="session")
def wikitext() -> Path:
    return _shared("wikitext-2")


@pytest.fixture(scope="session")
def foreign_models() -> Path:
    """Models of other programs, with what those say of a text."""
    return _shared("import")


@pytest.fixture(scope="session")
def shared_data() -> Callable[[str], Path]:
    """The directory of some shared data by its name; the test is skipped where it is absent."""
    return _shared


@pytest.fixture(autouse=True)
def nothing_hidden() -> Iterator[None]:
    """What a test has revealed or hidden in this process is no secret to the next."""
    yield
    redaction._hidden.clear()


@pytest.fixture(autouse=True)
def log_level() -> Iterator[None]:
    """A command run in this process sets lmkit's level; the next test begins without it."""
    yield
    logging.getLogger("lmkit").setLevel(logging.NOTSET)
