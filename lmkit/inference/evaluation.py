"""Evaluation: a model's nll, perplexity and bits per byte on a text, under a protocol."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from lmkit.inference.text import Text
from lmkit.inference.trained import POSITIONS, TrainedModel
from lmkit.metrics import bits_per_byte, perplexity
from lmkit.store import TokenStore
from lmkit.windows.lanes import Protocol

NUM_LANES = 64


def measure(
    trained: TrainedModel, store: TokenStore | Text, protocol: Protocol, num_lanes: int | None
) -> dict[str, Any]:
    """nll, perplexity and, if the tokenizer is lossless, bits per byte under a protocol."""
    units = {
        "document": store.num_documents,
        "sentence": store.num_lines,
        "stream": store.num_tokens,
    }[protocol]
    bptt = None
    as_in_training = isinstance(store, TokenStore) and protocol == trained.protocol
    if num_lanes is None and as_in_training and trained.shape:
        num_lanes, bptt = trained.shape
    num_lanes = min(num_lanes or (1 if protocol == "stream" else NUM_LANES), units)
    loader = trained.loader(store, protocol, num_lanes, num_lanes * bptt if bptt else POSITIONS)
    began = time.perf_counter()
    with _progress() as bar:
        task = bar.add_task(protocol, total=store.num_tokens, rate="")
        for nll_sum, num_tokens in trained.nll_sums(loader):  # noqa: B007 - the last one counts
            rate = num_tokens / (time.perf_counter() - began)
            bar.update(task, completed=num_tokens, rate=f"{rate:,.0f} tokens/s")
    assert num_tokens == store.num_tokens
    nll = nll_sum / num_tokens
    lossless = trained.tokenizer.lossless and store.num_bytes
    return {
        "protocol": protocol,
        "num_lanes": num_lanes,
        "num_tokens": num_tokens,
        "num_unknown": store.num_unknown,
        "nll": nll,
        "perplexity": perplexity(nll),
        "bits_per_byte": bits_per_byte(nll_sum, store.num_bytes) if lossless else None,
        "tokens_per_second": num_tokens / (time.perf_counter() - began),
    }


def _progress() -> Progress:
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        TextColumn("{task.percentage:.0f}% {task.fields[rate]}"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
