"""Text to tokens: lmkit's word path and store beside a plain Python reader.

    python benchmarks/tokenise.py path=DIR [rounds=5]

The plain reader is that of the public word language model: a dictionary from words to ids, one
pass over the file to fill it and one to look up. Both start at the file and end with ids.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from measure import SCRATCH, Rates, console, print_header, settings
from omegaconf import MISSING

from lmkit.corpus import WikiText
from lmkit.store import TokenStore, prepare
from lmkit.tokenizer import Word
from lmkit.windows import WindowLoader

OPENINGS = 200
BLOCK = 1 << 20


@dataclass
class Settings:
    path: str = MISSING
    rounds: int = 5


def plain(file: Path) -> Callable[[], int]:
    def run() -> int:
        ids: dict[str, int] = {}
        with file.open(encoding="utf-8") as lines:
            for line in lines:
                for word in [*line.split(), "<eos>"]:
                    if word not in ids:
                        ids[word] = len(ids)
        with file.open(encoding="utf-8") as lines:
            pieces = [
                torch.tensor([ids[word] for word in [*line.split(), "<eos>"]]) for line in lines
            ]
        return len(torch.cat(pieces))

    return run


def lmkit(source: WikiText) -> Callable[[], int]:
    def run() -> int:
        texts = [document.text for document in source.documents("train")]
        tokenizer = Word()
        tokenizer.train(texts)
        return len(tokenizer.encode(texts).ids)

    return run


def lookup(source: WikiText) -> Callable[[], int]:
    texts = [document.text for document in source.documents("train")]
    tokenizer = Word()
    tokenizer.train(texts)
    return lambda: len(tokenizer.encode(texts).ids)


def stream(store: TokenStore) -> Callable[[], int]:
    def run() -> int:
        for begin in range(0, store.num_tokens, BLOCK):
            np.asarray(store.tokens[begin : begin + BLOCK], dtype=np.int64)
        return store.num_tokens

    return run


def windows(store: TokenStore, eos_id: int) -> Callable[[], int]:
    loader = WindowLoader(
        store, eos_id=eos_id, protocol="document", num_lanes=64, bptt=70, seed=None
    )
    return lambda: sum(window.num_targets for window in loader)


def main() -> None:
    given = settings(Settings)
    print_header()
    source = WikiText(given.path)
    (file,) = (f for f in Path(given.path).iterdir() if "train" in f.name)
    prepared = prepare(source, Word(), SCRATCH)
    store = prepared.stores["train"]
    rates = Rates("plain reader")
    sides = {
        rates.baseline: plain(file),
        "lmkit: read, vocabulary, ids": lmkit(source),
        "lmkit: ids alone": lookup(source),
        "store: all ids as int64": stream(store),
        "store: windows of 64 lanes by 70": windows(store, prepared.tokenizer.eos_id),
    }
    rates.turn_about(sides, given.rounds)
    console.print(rates.table("WikiText-2 train"))
    seconds = []
    for _ in range(OPENINGS):
        begin = time.perf_counter()
        TokenStore.open(store.directory)
        seconds.append(time.perf_counter() - begin)
    console.print(
        f"a store of {store.num_tokens:,} tokens opens in "
        f"{1e3 * statistics.median(seconds):.2f} ms (median of {OPENINGS})"
    )


if __name__ == "__main__":
    main()
