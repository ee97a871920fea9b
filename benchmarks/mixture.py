"""Two stores mixed by weight, streamed by themselves and by a training: does memory stay flat?

    python benchmarks/mixture.py directory=DIR [tokens=4e8] [steps=1500] [workers=2] [keep=false]

The second store has a quarter of the first one's tokens; the weights are 3 and 1. Text and stores
go into DIR, which must not exist and is deleted again. Memory is that of a process without the
pages of files that it has mapped, from Linux's /proc.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from measure import console, print_header, settings
from omegaconf import MISSING
from rich.table import Table
from scale import generate, resident

TENTHS = 10
STREAM = """
import sys, time
from pathlib import Path
from lmkit.windows.mixture import MixtureLoader
from lmkit.store.token_store import TokenStore
from lmkit.tokenizer import load_tokenizer

places = [Path(each) for each in sys.argv[1:]]
texts = [TokenStore.open(place / "train") for place in places]
eos_id = load_tokenizer(places[0]).eos_id
began = time.perf_counter()
loader = MixtureLoader(texts, [3.0, 1.0], eos_id=eos_id, num_lanes=80, bptt=70, seed=1)
told = 0
num_tokens = 0
for number, window in enumerate(loader, start=1):
    num_tokens += window.num_targets
    if number * 10 // len(loader) > told:
        told = number * 10 // len(loader)
        print(f"{num_tokens} {time.perf_counter() - began}", flush=True)
        sys.stdin.readline()
print(*loader.state_dict()["mixture"]["tokens"])
"""


@dataclass
class MixtureSettings:
    directory: str = MISSING
    tokens: float = 4e8
    steps: int = 1500
    workers: int = 2
    file_bytes: int = 1 << 25
    keep: bool = False


def lmkit(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "lmkit", *arguments]


def own(pid: int) -> int:
    """Bytes resident that are not pages of files."""
    whole, of_files = resident(pid)
    return whole - of_files


def prepare(given: MixtureSettings, name: str, num_tokens: float, *tokenizer: str) -> Path:
    place = Path(given.directory) / name
    (place / "text").mkdir(parents=True)
    generate(place / "text", int(num_tokens), given.file_bytes)
    keys = ("data=jsonl", f"data.path={place / 'text'}", "data.test_fraction=0", *tokenizer)
    where = (f"store={place / 'store'}", f"outputs={place / 'outputs'}", "format=json")
    command = lmkit("prepare", *keys, f"workers={given.workers}", *where)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return place / "store"


def stream(stores: list[Path]) -> tuple[list[tuple[int, float, int]], list[int]]:
    """After each tenth of an epoch: tokens, seconds, bytes; and tokens taken of each store."""
    with subprocess.Popen(
        [sys.executable, "-c", STREAM, *map(str, stores)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout
        assert process.stdin
        rows = []
        for _ in range(TENTHS):
            tokens, seconds = process.stdout.readline().split()
            rows.append((int(tokens), float(seconds), own(process.pid)))
            print(file=process.stdin, flush=True)
        return rows, [int(each) for each in process.stdout.readline().split()]


def train(given: MixtureSettings, stores: list[Path]) -> list[tuple[float, int]]:
    """Share of the steps done, and bytes, of a training while it goes on."""
    outputs = Path(given.directory) / "outputs"
    paths = [f"data.paths.{name}={store}" for name, store in zip("ab", stores, strict=True)]
    keys = ("data.weights.a=3", "data.weights.b=1", "data.batch_size=20", "data.bptt=35")
    length = (f"trainer.max_steps={given.steps}", "trainer.max_epochs=-1")
    logged = ("trainer.log_every_n_steps=10", "trainer.limit_val_batches=20", "name=mixed")
    command = lmkit("train", "data=mixture", *paths, *keys, *length, *logged, "run_id=mixed")
    rows = []
    process = subprocess.Popen(
        [*command, f"outputs={outputs}", "trainer.limit_test_batches=0"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    done = threading.Event()

    def watch() -> None:
        file = outputs / "mixed" / "mixed" / "metrics.jsonl"
        while not done.wait(0.5):
            lines = file.read_text().splitlines() if file.exists() else []
            if lines:
                rows.append((json.loads(lines[-1])["step"] / given.steps, own(process.pid)))

    watching = threading.Thread(target=watch)
    watching.start()
    process.wait()
    done.set()
    watching.join()
    assert process.returncode == 0, process.returncode
    return rows


def main() -> None:
    given = settings(MixtureSettings)
    print_header()
    began = time.perf_counter()
    first = prepare(given, "a", given.tokens, "tokenizer=word")
    saved = ("tokenizer=stored", f"tokenizer.path={first}")
    second = prepare(given, "b", given.tokens / 4, *saved)
    console.print(f"two stores made in {time.perf_counter() - began:,.0f} s")
    rows, taken = stream([first, second])
    steps = train(given, [first, second])
    table = Table(title="memory that is not pages of files")
    for column in ("done", "tokens streamed", "tokens/s", "streaming", "training"):
        table.add_column(column, justify="right")
    for tenth, (tokens, seconds, size) in enumerate(rows, start=1):
        here = [b for share, b in steps if share <= tenth / TENTHS]
        table.add_row(
            f"{tenth * 100 // TENTHS}%",
            f"{tokens:,}",
            f"{tokens / seconds:,.0f}",
            f"{size / 2**20:,.0f} MiB",
            f"{here[-1] / 2**20:,.0f} MiB" if here else "",
        )
    console.print(table)
    shares = " and ".join(f"{each:,} ({each / sum(taken):.4%})" for each in taken)
    console.print(f"tokens taken of the stores: {shares}")
    if not given.keep:
        shutil.rmtree(given.directory)


if __name__ == "__main__":
    main()
