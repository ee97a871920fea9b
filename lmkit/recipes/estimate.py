"""An estimate of how long a recipe would take on this machine, without its text."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import cache
from typing import Any

import torch

from lmkit.assembly import build_model
from lmkit.system import hardware, threads

# Rows of the square matrices whose product is timed, and for how long, in seconds.
SIZE = 1024
LASTS = 0.3
# Of the speed of such a product, what a training reaches: an assumption, which only separates
# hours from months.
SHARE = 0.4
# Operations for each weight and token: two in the forward pass, four in the backward pass.
OPERATIONS = 6


def seconds(config: Mapping[str, Any], operations_per_second: float) -> float | None:
    """The duration of a recipe's training at a speed; None if its length is not known.

    config: the recipe's, composed.
    """
    facts = config["recipe"]
    tokens, vocabulary_size = _tokens(config), facts.get("vocabulary_size")
    if not (tokens and vocabulary_size):
        return None
    return float(
        OPERATIONS * num_multiplied(config, vocabulary_size) * tokens / operations_per_second
    )


def _tokens(config: Mapping[str, Any]) -> int:
    """How many tokens a recipe's training reads; 0 if that is not known."""
    trainer, data = config["trainer"], config["data"]
    epochs, updates = (trainer.get(key) or 0 for key in ("max_epochs", "max_steps"))
    by_epochs = epochs * (config["recipe"].get("tokens") or {}).get("train", 0)
    by_batches = updates * trainer.get("accumulate_grad_batches", 1)
    by_updates = by_batches * data.get("batch_size", 0) * data.get("bptt", 0)
    lengths = [length for length in (by_epochs, by_updates) if length > 0]
    return min(lengths, default=0)


def num_multiplied(config: Mapping[str, Any], vocabulary_size: int) -> float:
    """The number of weights that each token is multiplied with, on average: those of an embedding
    are looked up, and a head may use some of its own, or some several times."""
    with torch.device("meta"):
        model, head = build_model(config, vocabulary_size)
    every = sum(parameter.numel() for parameter in model.parameters())
    return every - model.embedding.weight.numel() + head.num_multiplied()


@cache
def speed() -> float:
    """Operations per second that a training reaches here, from a product of two matrices."""
    name = hardware.accelerator("auto")
    dtype = torch.bfloat16 if hardware.fast_bf16(name) else torch.float32
    one, other = (torch.ones(SIZE, SIZE, device=name, dtype=dtype) for _ in range(2))

    # On the CPU its own time in one thread, so that what else runs on the machine does not count.
    on_cpu = name == "cpu"
    clock = time.process_time if on_cpu else time.perf_counter

    def product() -> float:
        began = clock()
        float((one @ other)[0, 0])  # which waits for the device
        return clock() - began

    with threads.use(1 if on_cpu else None):
        began, fastest = time.perf_counter(), product()
        while time.perf_counter() - began < LASTS:
            fastest = min(fastest, product())
    return SHARE * 2 * SIZE**3 / fastest * (torch.get_num_threads() if on_cpu else 1)
