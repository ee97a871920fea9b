"""Preparation in several processes: what one would make, exactly once, killed and resumed."""

import contextlib
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pieces import jsonl, written
from preparing import children, start_preparing, sums
from spawned import Dies, Mark, Mistaken, Raises, mark

from lmkit.corpus import Source
from lmkit.errors import UserError
from lmkit.store import TokenStore, prepare
from lmkit.store.meter import Meter
from lmkit.store.pool import run_jobs
from lmkit.tokenizer import Bytes, Characters, Word


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(0)
    words = np.array([f"w{n}" for n in range(500)])

    def row() -> str:
        return " ".join(words[np.minimum(rng.zipf(1.3, 30) - 1, 499)])

    directory = tmp_path_factory.mktemp("many")
    return written(directory / "text", [[row() for _ in range(40)] for _ in range(24)])


@pytest.mark.parametrize("make", [Word, Characters, lambda: Word(2, 90, True), Bytes])
def test_processes_give_what_one_does(many: Path, tmp_path: Path, make: Callable[[], Any]) -> None:
    source = jsonl(many, 15_000, valid_fraction=0.2)
    assert len(source.pieces("train")) > 5
    one = prepare(source, make(), tmp_path / "one", workers=1)
    two = prepare(source, make(), tmp_path / "two", workers=2)
    whole = jsonl(many, 1 << 28, valid_fraction=0.2)
    sequential = prepare(whole, make(), tmp_path / "sequential", workers=1)
    assert one.tokenizer.hash() == two.tokenizer.hash() == sequential.tokenizer.hash()
    assert one.hash == two.hash
    assert sums(tmp_path / "one") == sums(tmp_path / "two")
    assert len(sums(tmp_path / "one")) == 2 + 2 * len(source.pieces("train"))
    for split, store in sequential.stores.items():
        np.testing.assert_array_equal(store.tokens, two.stores[split].tokens)
    assert not list(tmp_path.rglob("counts"))
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.parametrize(
    ("kind", "error", "message"),
    [
        (
            Dies,
            UserError,
            "^shard 7 of train: the process that prepared it was killed by SIGKILL; ",
        ),
        (Raises, RuntimeError, "^shard 7 of train: ZeroDivisionError: a defect\n\nTraceback"),
        (Mistaken, UserError, "^007.jsonl: the text is wrong$"),
    ],
)
def test_a_worker_that_fails_ends_all_by_name_and_loses_nothing(
    many: Path, tmp_path: Path, kind: type[Source], error: type[Exception], message: str
) -> None:
    bad = kind(str(many), valid_fraction=0, test_fraction=0)  # type: ignore[call-arg]
    bad.piece_bytes = 1
    with pytest.raises(error, match=message):
        prepare(bad, Bytes(), tmp_path / "cache", workers=2)
    kept = list(tmp_path.glob("cache/*/train/[0-9]*[0-9]/manifest.json"))
    assert len(kept) >= 6
    assert not list(tmp_path.glob("cache/*/train/manifest.json"))
    times = {file: file.stat().st_mtime_ns for file in kept}
    (directory,) = (path.parent for path in tmp_path.glob("cache/*/train"))
    sound = jsonl(many, 1)
    sound._settings = bad._settings  # the class is no part of what the text is
    assert prepare(sound, Bytes(), tmp_path / "cache", workers=2).directory == directory
    assert {file: file.stat().st_mtime_ns for file in kept} == times


def test_jobs_are_done_once_each(tmp_path: Path) -> None:
    jobs = [Mark(tmp_path / str(n), 1) for n in range(9)]
    meter = Meter("marks", 9)
    run_jobs(mark, jobs, 3, meter)
    assert sorted(file.read_text() for file in tmp_path.iterdir()) == ["once"] * 9
    assert (meter.amount, meter.done_bytes) == (9 * 5, 9)


# ---- real processes, killed


def whole_shards(place: Path) -> list[Path]:
    return list(place.glob("train/[0-9]*[0-9]/manifest.json"))


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_ended_on_the_way_and_resumed(
    large: Path, tmp_path: Path, undisturbed: dict[str, str], how: signal.Signals
) -> None:
    place = tmp_path / "store"
    process = start_preparing(large, place)
    while len(whole_shards(place)) < 3:
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)
    workers = children(process.pid)
    began = time.monotonic()
    process.send_signal(how)
    if how == signal.SIGKILL:
        for pid in workers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, how)
    out, err = process.communicate(timeout=30)
    assert time.monotonic() - began < 10
    expected = -how if how == signal.SIGKILL else 128 + how
    assert (process.returncode, out) == (expected, "")
    assert "Traceback" not in err
    kept = {file: file.stat().st_mtime_ns for file in whole_shards(place)}
    assert 3 <= len(kept) < 16
    if how != signal.SIGKILL:
        assert not list(place.rglob("*.tmp"))
    again = start_preparing(large, place)
    out, err = again.communicate(timeout=120)
    assert again.returncode == 0, err
    assert {file: file.stat().st_mtime_ns for file in kept} == kept
    assert sums(place) | {"hash": out} == undisturbed
    assert not list(place.rglob("*.tmp"))


def test_workers_end_with_a_parent_that_is_killed(large: Path, tmp_path: Path) -> None:
    place = tmp_path / "store"
    process = start_preparing(large, place)
    while not whole_shards(place):
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)
    workers = children(process.pid)
    assert len(workers) >= 2
    process.kill()
    process.communicate()
    patience = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in workers):
        assert time.monotonic() < patience
        time.sleep(0.05)


def test_two_preparations_at_once(large: Path, tmp_path: Path, undisturbed: dict[str, str]) -> None:
    place = tmp_path / "store"
    first = start_preparing(large, place)
    while not whole_shards(place):
        assert first.poll() is None, first.communicate()
        time.sleep(0.005)
    held = [first.pid, *children(first.pid)]
    for pid in held:
        os.kill(pid, signal.SIGSTOP)
    second = start_preparing(large, place)
    assert second.stderr is not None
    assert second.stderr.readline() == f"{place}: another process prepares it; waiting\n"
    for pid in held:
        os.kill(pid, signal.SIGCONT)
    done = [process.communicate(timeout=120) for process in (first, second)]
    assert done == [(undisturbed["hash"], "")] * 2
    assert sums(place) | {"hash": done[0][0]} == undisturbed


def test_a_manifest_of_a_split_that_is_damaged(many: Path, tmp_path: Path, caplog: Any) -> None:
    def prepared() -> TokenStore:
        return prepare(jsonl(many, 90_000), Bytes(), tmp_path, workers=1).stores["train"]

    sound = prepared()
    assert len(sound.parts) > 1
    manifest = sound.directory / "manifest.json"
    os.truncate(manifest, 40)
    assert prepared().sha256 == sound.sha256
    (record,) = caplog.records
    assert record.getMessage().startswith(f"{manifest}: the prepared data is damaged: found not a")
    manifest.unlink()
    assert prepared().sha256 == sound.sha256
    assert len(caplog.records) == 1


def test_a_shard_of_another_preparation_is_noticed(many: Path, tmp_path: Path) -> None:
    store = prepare(jsonl(many, 90_000), Bytes(), tmp_path, workers=1).stores["train"]
    (store.directory / "00000").rename(tmp_path / "away")
    (store.directory / "00001").rename(store.directory / "00000")
    (tmp_path / "away").rename(store.directory / "00001")
    with pytest.raises(UserError, match=r"00000/manifest\.json: .* a shard of another preparation"):
        TokenStore.open(store.directory)
