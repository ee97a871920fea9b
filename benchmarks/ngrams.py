"""How long counting n-grams takes, and how much memory, at the size of a larger corpus.

    python benchmarks/ngrams.py TEXT copies=10 order=5

TEXT: a file of words, such as WikiText-2's train.txt. It is repeated, and in each copy three of
ten tokens become others, drawn as often as they occur, so that n-grams go on being new. Prints the
number of n-grams, seconds of the clock and of the processor, and the peak of memory.
"""

import resource
import sys
import time
from pathlib import Path

import numpy as np

from lmkit.inference import Text
from lmkit.ngrams import counted, estimated, read_symbols
from lmkit.tokenizer import Word

CHANGED = 0.3


def copied(tokens: np.ndarray, copies: int) -> np.ndarray:
    """The tokens of all copies; line ends stay."""
    draw = np.random.default_rng(0)
    parts = []
    for _ in range(copies):
        others = draw.choice(tokens, len(tokens))
        changed = (draw.random(len(tokens)) < CHANGED) & (tokens != 0) & (others != 0)
        parts.append(np.where(changed, others, tokens).astype(np.uint32))
    return np.concatenate(parts)


def main(file: str, *settings: str) -> None:
    given = {key: int(value) for key, _, value in (each.partition("=") for each in settings)}
    copies, order = given.get("copies", 10), given.get("order", 5)
    text, tokenizer = Path(file).read_text(encoding="utf-8"), Word()
    tokenizer.learn(tokenizer.count([text]))
    read = Text.of(text, tokenizer, by_line=True)
    tokens, size = copied(read.tokens, copies), tokenizer.vocabulary_size
    ends = np.concatenate([read.line_ends + k * len(read.tokens) for k in range(copies)])
    began, worked = time.perf_counter(), time.process_time()
    symbols = read_symbols(tokens, ends, eos_id=tokenizer.eos_id, vocabulary_size=size, order=order)
    tables, _ = estimated(counted(symbols), size)
    seconds, processor = time.perf_counter() - began, time.process_time() - worked
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{len(tokens):,} tokens, order {order}: {sum(tables.sizes):,} n-grams")
    print(f"{seconds:.1f} s, {processor:.1f} s of a processor, {memory:.2f} GiB at most")
    print(f"{len(tokens) / processor:,.0f} tokens a second of a processor")


if __name__ == "__main__":
    main(*sys.argv[1:])
