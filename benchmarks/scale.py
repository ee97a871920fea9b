"""Generated text prepared in parallel, killed on the way, resumed, prepared again, and streamed.

    python benchmarks/scale.py directory=DIR [tokens=1e9] [workers=2] [file_bytes=33554432]
        [lanes=80] [bptt=70] [keep=false]

Text, stores and caches go into DIR, which must not exist and is deleted again. Memory is that of
a command's process and its children, read ten times a second from Linux's /proc.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from measure import console, print_header, settings
from omegaconf import MISSING
from rich.table import Table

VOCABULARY = 50_000
WORDS_A_LINE, WORDS_A_DOCUMENT = 20, 800
PAGE = os.sysconf("SC_PAGE_SIZE")

STREAM = """
import sys, time
from pathlib import Path
from lmkit.windows.loader import WindowLoader
from lmkit.store.token_store import TokenStore
from lmkit.tokenizer import load_tokenizer

directory, lanes, bptt = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
began = time.perf_counter()
store = TokenStore.open(directory / "train")
opened = time.perf_counter()
eos_id = load_tokenizer(directory).eos_id
layout = {"protocol": "document", "num_lanes": lanes, "bptt": bptt, "seed": 1}
loader = WindowLoader(store, eos_id=eos_id, **layout)
planned = time.perf_counter()
num_targets = sum(int(window.mask.sum()) for window in loader)
read = time.perf_counter()
assert num_targets == store.num_tokens
print(opened - began, planned - opened, read - planned)
"""


@dataclass
class ScaleSettings:
    directory: str = MISSING
    tokens: float = 1e9
    workers: int = 2
    file_bytes: int = 1 << 25
    lanes: int = 80
    bptt: int = 70
    keep: bool = False


@dataclass
class Phase:
    """What a command took: bytes resident at most in all its processes, those of them that are
    not pages of files, and bytes resident in one process."""

    name: str
    seconds: float
    all_bytes: int
    own_bytes: int
    one_bytes: int
    output: str


class Watched:
    """A command in a process of its own, its memory and that of its children watched."""

    def __init__(self, name: str, command: list[str]) -> None:
        self.name = name
        self.began = time.perf_counter()
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.all_bytes = self.own_bytes = self.one_bytes = 0
        self.watch = threading.Thread(target=self._watch)
        self.watch.start()

    def _watch(self) -> None:
        while self.process.returncode is None:
            sizes = [resident(pid) for pid in _tree(self.process.pid)] or [(0, 0)]
            whole, of_files = zip(*sizes, strict=True)
            self.all_bytes = max(self.all_bytes, sum(whole))
            self.own_bytes = max(self.own_bytes, sum(whole) - sum(of_files))
            self.one_bytes = max(self.one_bytes, *whole, 0)
            time.sleep(0.1)

    def kill(self) -> None:
        """SIGKILL to the process and all its children."""
        for pid in _tree(self.process.pid):
            os.kill(pid, signal.SIGKILL)

    def wait(self, expected: int = 0) -> Phase:
        output, _ = self.process.communicate()
        self.watch.join()
        assert self.process.returncode == expected, (self.name, self.process.returncode, output)
        seconds = time.perf_counter() - self.began
        return Phase(self.name, seconds, self.all_bytes, self.own_bytes, self.one_bytes, output)


def _tree(pid: int) -> list[int]:
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [pid, *(each for child in children for each in _tree(int(child)))]


def resident(pid: int) -> tuple[int, int]:
    """Bytes, and those of them that are pages of files."""
    try:
        _, whole, of_files, *_ = Path(f"/proc/{pid}/statm").read_text().split()
    except OSError:
        return 0, 0
    return int(whole) * PAGE, int(of_files) * PAGE


def generate(directory: Path, num_tokens: int, file_bytes: int) -> int:
    """JSON lines of Zipf-distributed words in files; the same for the same sizes."""
    letters = np.array(list("etaoinshrdlcumwfgypbvk"))
    names = np.random.default_rng(0).choice(letters, (VOCABULARY, 9))
    lengths = np.random.default_rng(1).integers(2, 10, VOCABULARY)
    words = [
        f"{''.join(row[:n])}{k % 7}" for k, (row, n) in enumerate(zip(names, lengths, strict=True))
    ]
    ends = (" ", "\\n", '"}\n{"text": "')
    table = pa.array([word + end for end in ends for word in words], pa.large_string())
    shares = 1 / np.arange(1, VOCABULARY + 1)
    cumulated = np.cumsum(shares / shares.sum())
    done = number = 0
    while done < num_tokens:
        rng = np.random.default_rng([2, number])
        count = min(file_bytes // 7, num_tokens - done)
        ids = np.minimum(np.searchsorted(cumulated, rng.random(count)), VOCABULARY - 1)
        point = rng.random(count)
        end = np.where(point < 1 / WORDS_A_DOCUMENT, 2, np.where(point < 1 / WORDS_A_LINE, 1, 0))
        end[-1] = 2
        text = table.take(pa.array(ids + VOCABULARY * end)).buffers()[2].to_pybytes()
        file = directory / ("train" if number else "valid") / f"{number:05d}.jsonl"
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(b'{"text": "' + text.removesuffix(b'{"text": "'))
        done += count + int((end > 0).sum()) if number else 0
        number += 1
    return sum(file.stat().st_size for file in directory.glob("*/*"))


def prepare(given: ScaleSettings, name: str) -> list[str]:
    text, place = Path(given.directory) / "text", Path(given.directory) / name
    return [
        *(sys.executable, "-m", "lmkit", "prepare", "data=jsonl", "tokenizer=word"),
        *(f"data.path={text}", f"workers={given.workers}", "data.test_fraction=0"),
        *(f"store={place / 'store'}", f"outputs={place / 'outputs'}", "format=json"),
    ]


def killed(given: ScaleSettings, num_shards: Callable[[], int], wanted: int) -> Phase:
    run = Watched("killed at half", prepare(given, "one"))
    while num_shards() < wanted:
        assert run.process.poll() is None, "it ended too early to be killed"
        time.sleep(0.05)
    run.kill()
    return run.wait(-signal.SIGKILL)


def main() -> None:
    given = settings(ScaleSettings)
    directory = Path(given.directory)
    print_header()
    (directory / "text").mkdir(parents=True)
    began = time.perf_counter()
    num_bytes = generate(directory / "text", int(given.tokens), given.file_bytes)
    console.print(f"{num_bytes:,} bytes of text in {time.perf_counter() - began:.0f} s")
    one, two = directory / "one" / "store", directory / "two" / "store"
    pieces = -(-num_bytes // (1 << 28))

    def num_shards() -> int:
        return len(list(one.glob("train/[0-9]*[0-9]/manifest.json")))

    phases = [killed(given, num_shards, max(pieces // 2, 1))]
    left = num_shards()
    for name, place in (("resumed", "one"), ("undisturbed", "two")):
        phases.append(Watched(name, prepare(given, place)).wait())
    data = [json.loads((store / "data.json").read_text()) for store in (one, two)]
    counts = data[1]["splits"]["train"]
    stream = [sys.executable, "-c", STREAM, str(two), str(given.lanes), str(given.bptt)]
    phases.append(Watched("an epoch of windows", stream).wait())
    assert data[0]["splits"] == data[1]["splits"], "the checksums differ"
    console.print(f"{left} shards survived the kill; all checksums equal: {counts['sha256']}")
    result = json.loads(phases[2].output)["splits"]["train"]
    opened, planned, read = map(float, phases[3].output.split())
    rates = {
        phases[2].name: f"{result['tokens_per_second']:,.0f} encoding",
        phases[3].name: f"{counts['num_tokens'] / read:,.0f} reading",
    }
    table = Table(title=f"{counts['num_tokens']:,} tokens in {counts['num_documents']:,} documents")
    for column in (
        "",
        "s",
        "tokens/s in all",
        "tokens/s",
        "resident",
        "of that own",
        "one process",
    ):
        table.add_column(column, justify="right" if column else "left")
    for phase in phases:
        whole = phase.name in rates
        table.add_row(
            phase.name,
            f"{phase.seconds:,.0f}",
            f"{counts['num_tokens'] / phase.seconds:,.0f}" if whole else "",
            rates.get(phase.name, ""),
            *(
                f"{size / 2**20:,.0f} MiB"
                for size in (phase.all_bytes, phase.own_bytes, phase.one_bytes)
            ),
        )
    console.print(table)
    size = sum(file.stat().st_size for file in two.rglob("*") if file.is_file())
    console.print(
        f"store: {size:,} bytes; opened in {opened:.2f} s, lanes planned in {planned:.2f} s"
    )
    if not given.keep:
        shutil.rmtree(directory)


if __name__ == "__main__":
    main()
