"""Evaluation: a model's nll, perplexity and bits per byte on a text, under a protocol."""

from __future__ import annotations

import time
from typing import Any

from lmkit.inference.text import Text
from lmkit.inference.trained import POSITIONS, TrainedModel
from lmkit.metrics import bits_per_byte, perplexity
from lmkit.store import TokenStore
from lmkit.system.progress import progress
from lmkit.windows.lanes import Protocol

NUM_LANES = 64


def measure(
    trained: TrainedModel,
    store: TokenStore | Text,
    protocol: Protocol,
    num_lanes: int | None,
    what: str = "",
) -> dict[str, Any]:
    """nll, perplexity and, if the tokenizer is lossless, bits per byte under a protocol; what: the
    text's name, for the display of progress."""
    num_lanes, positions = layout(trained, store, protocol, num_lanes)
    loader = trained.loader(store, protocol, num_lanes, positions)
    began = time.perf_counter()
    with progress(f"{what}, {protocol}" if what else protocol, store.num_tokens) as advance:
        for nll_sum, num_tokens in trained.nll_sums(loader):  # noqa: B007 - the last one counts
            advance(num_tokens)
    assert num_tokens == store.num_tokens
    return {
        "protocol": protocol,
        "num_lanes": num_lanes,
        "num_tokens": num_tokens,
        "num_unknown": store.num_unknown,
        **figures(trained, store, nll_sum),
        "tokens_per_second": num_tokens / (time.perf_counter() - began),
    }


def layout(
    trained: TrainedModel, store: TokenStore | Text, protocol: Protocol, num_lanes: int | None
) -> tuple[int, int]:
    """The lanes, and the positions over all of them, of the windows in which a text is read; those
    of the training's own evaluations on its splits and under its protocol."""
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
    return num_lanes, num_lanes * bptt if bptt else POSITIONS


def figures(trained: TrainedModel, store: TokenStore | Text, nll_sum: float) -> dict[str, Any]:
    """nll, perplexity and, if the tokenizer is lossless, bits per byte; nll_sum: in nats, of all
    tokens."""
    nll = nll_sum / store.num_tokens
    lossless = trained.tokenizer.lossless and store.num_bytes
    return {
        "nll": nll,
        "perplexity": perplexity(nll),
        "bits_per_byte": bits_per_byte(nll_sum, store.num_bytes) if lossless else None,
    }
