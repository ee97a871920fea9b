"""Training steps with each head, turn about: a 2x650 LSTM over words drawn by a Zipf law.

    python benchmarks/heads.py [vocabulary=33278] [tied=true] [precision=bf16-mixed] [steps=4]
        [rounds=5] [heads=full,adaptive,sampled,mixture] [lanes=20] [bptt=35]

Word k of the vocabulary has a probability in proportion to (k + 2.7)^-1.1, which puts about as many
targets into the clusters of an adaptive softmax as WikiText-2 does. A step is forward, backward,
clipping by norm and plain SGD, as Lightning has the task make it on one process; all heads follow
the same LSTM and embedding. Ratios are to the first head. The time that the process computed tells
more than the clock where other programs use the cores; with OMP_NUM_THREADS=1 nothing of it is
waiting for another thread.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import cycle, islice

import numpy as np
import torch
from measure import Rates, console, print_header, settings
from torch.optim import SGD

from lmkit.head import AdaptiveSoftmax, FullSoftmax, Head, MixtureOfSoftmaxes, SampledSoftmax
from lmkit.model import LSTM
from lmkit.optim import global_norm
from lmkit.system.allocator import keep_freed_memory
from lmkit.training import Task
from lmkit.windows import Window

SIZE = 650
KINDS = {
    "full": FullSoftmax,
    "adaptive": AdaptiveSoftmax,
    "sampled": SampledSoftmax,
    "mixture": MixtureOfSoftmaxes,
}


@dataclass
class HeadSettings:
    """heads: their names, separated by commas; the others are compared with the first."""

    vocabulary: int = 33_278
    tied: bool = True
    precision: str = "bf16-mixed"
    steps: int = 4
    rounds: int = 5
    heads: str = "full,adaptive,sampled,mixture"
    lanes: int = 20
    bptt: int = 35


def probabilities(vocabulary: int) -> np.ndarray:
    weights = (np.arange(vocabulary) + 2.7) ** -1.1
    return weights / weights.sum()


def windows(given: HeadSettings) -> Iterator[Window]:
    """Eight of them, again and again."""
    draw = np.random.default_rng(1)
    shape, number = (given.lanes, given.bptt), given.lanes * given.bptt
    made = []
    for index in range(8):
        ids = draw.choice(given.vocabulary, (2, *shape), p=probabilities(given.vocabulary))
        tokens, targets = torch.from_numpy(ids)
        made.append(
            Window(
                tokens=tokens,
                targets=targets,
                resets=torch.zeros(shape, dtype=torch.bool),
                mask=torch.ones(shape, dtype=torch.bool),
                weight=torch.full(shape, 1 / number),
                index=index,
                num_targets=number,
                epoch=0,
                num_lanes=given.lanes,
                first_lane=0,
            )
        )
    return cycle(made)


def side(model: LSTM, head: Head, given: HeadSettings, computed: list[float]) -> Callable[[], int]:
    """A function that trains some steps and returns the number of their tokens; it adds the
    seconds that the process computed for a step to `computed`."""
    task = Task(model, head, lambda parameters: SGD(parameters, lr=0.1))
    optimizer = task.make_optimizer(task.parameters())
    head.sparse_gradient = True
    stream = windows(given)
    mixed = given.precision != "32-true"

    def train() -> int:
        begin = time.process_time()
        for window in islice(stream, given.steps):
            with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
                loss = task.training_step(window, window.index)
            loss.backward()
            norm = float(global_norm(task.parameters()))
            optimizer.param_groups[0]["lr"] = 0.1 * min(0.25 / (norm + 1e-6), 1)
            optimizer.step()
            head.keep_gradient()
            optimizer.zero_grad()
        computed.append((time.process_time() - begin) / given.steps)
        return given.steps * given.lanes * given.bptt

    return train


def main() -> None:
    given = settings(HeadSettings)
    keep_freed_memory()
    print_header()
    torch.manual_seed(1)
    sizes = {"embedding_size": SIZE, "hidden_size": SIZE, "num_layers": 2, "init_range": 0.1}
    model = LSTM(given.vocabulary, tie_weights=given.tied, **sizes)
    model.embedding.sparse_gradient = True
    shared = (SIZE, given.vocabulary)
    sides, parameters, computed = {}, {}, {}
    for name in given.heads.split(","):
        head = KINDS[name](*shared, embedding=model.embedding, init_range=0.1)
        head.learn_counts(torch.from_numpy(probabilities(given.vocabulary)))
        sides[name] = side(model, head, given, computed.setdefault(name, []))
        own = [p for p in head.parameters() if p is not model.embedding.weight]
        parameters[name] = f"{sum(p.numel() for p in own):,}"
        if name == "adaptive":
            shares = probabilities(given.vocabulary).cumsum()[np.array(head.cutoffs) - 1]
            told = ", ".join(
                f"{share:.0%} below {cutoff:,}"
                for share, cutoff in zip(shares, head.cutoffs, strict=True)
            )
            console.print(f"targets: {told}")
    rates = Rates(next(iter(sides)))
    rates.turn_about(sides, given.rounds)
    title = f"{given.vocabulary:,} words, {'tied' if given.tied else 'untied'}, {given.precision}"
    medians = {name: statistics.median(seconds[1:]) for name, seconds in computed.items()}
    first = next(iter(medians.values()))
    more = {
        "CPU s a step": {name: f"{seconds:.2f}" for name, seconds in medians.items()},
        "CPU ratio": {name: f"{first / seconds:.2f}" for name, seconds in medians.items()},
        "own parameters": parameters,
    }
    console.print(rates.table(title, more))


if __name__ == "__main__":
    main()
