"""What the methods of `lmkit evaluate` cost beside a plain reading, in one thread.

    python benchmarks/methods.py tokens=2000

An LSTM 2x200 with tied weights over 33,278 words, of random weights, and a random text. CPU seconds
are counted, not seconds, so that other programs on the machine matter less.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from lmkit.head import FullSoftmax
from lmkit.inference import Dynamic, MCDropout, TrainedModel
from lmkit.inference.cache import read_with_cache
from lmkit.inference.dynamic import read_dynamically, root_mean_squares
from lmkit.inference.mc_dropout import mean_nll
from lmkit.inference.text import Text
from lmkit.model import LSTM
from lmkit.tokenizer import Bytes

VOCABULARY = 33_278


def main(num_tokens: int) -> None:
    """Print tokens per CPU second of each, and the ratio to the plain reading."""
    torch.set_num_threads(1)
    model = LSTM(VOCABULARY, dropout=0.2, tie_weights=True)
    trained = TrainedModel(model, FullSoftmax(200, VOCABULARY, model.embedding), Bytes(), threads=1)
    ids = np.random.default_rng(1).integers(0, VOCABULARY, num_tokens)
    ends = np.array([num_tokens])
    text = Text(ids, ends, ends, 0, 0)
    rms = root_mean_squares(trained, text, "stream", Dynamic())
    works: dict[str, Callable[[], object]] = {
        "plain": lambda: read_with_cache(trained, text, "stream", 1),
        "cache=2000": lambda: read_with_cache(trained, text, "stream", 1, 2000, [0.3]),
        "cache=2000, 8 thetas": lambda: read_with_cache(
            trained, text, "stream", 1, 2000, [0.1 * n for n in range(8)]
        ),
        "mc_dropout=1": lambda: mean_nll(trained, text, "stream", 1, 35, MCDropout(1)),
        "gradients of rms": lambda: root_mean_squares(trained, text, "stream", Dynamic()),
        **{
            f"dynamic=rms, segment={n}": lambda n=n: read_dynamically(
                trained, text, "stream", Dynamic(segment=n), rms
            )
            for n in (5, 20)
        },
    }
    table = Table("", "tokens per CPU second", "times the plain reading")
    plain = 0.0
    for name, work in works.items():
        began = time.process_time()
        work()
        seconds = time.process_time() - began
        plain = plain or seconds
        table.add_row(name, f"{num_tokens / seconds:,.0f}", f"{seconds / plain:.1f}")
    Console().print(table)


if __name__ == "__main__":
    main(int(dict(word.split("=") for word in sys.argv[1:]).get("tokens", 2000)))
