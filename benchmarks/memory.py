"""Memory of training at sizes that do not fit otherwise, against the formula.

    python benchmarks/memory.py [precision=bf16-mixed] [steps=3]

The peak above the start of a fit, in a process of its own, for generated text: a large
vocabulary, long documents, long windows, and all three. The formula is that of
docs/performance.md; the last column is what the logits of one window alone would take in fp32.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from measure import SCRATCH, PeakMemory, console, in_child, print_header, settings
from rich.table import Table
from turns import make_trainer

from lmkit.assembly import make_data
from lmkit.config.check import check
from lmkit.config.compose import compose
from lmkit.system.allocator import keep_freed_memory
from lmkit.training.components import make_task

DOCUMENTS, LANES, SIZE, LAYERS = 2, 2, 200, 2


@dataclass
class Settings:
    precision: str = "bf16-mixed"
    steps: int = 3


@dataclass
class Case:
    vocabulary: int
    document: int  # tokens
    bptt: int


CASES = (
    Case(vocabulary=30_000, document=50_000, bptt=35),
    Case(vocabulary=300_000, document=200_000, bptt=35),
    Case(vocabulary=30_000, document=1_000_000, bptt=35),
    Case(vocabulary=30_000, document=50_000, bptt=2000),
    Case(vocabulary=300_000, document=1_000_000, bptt=2000),
)


def text(case: Case) -> Path:
    """Documents in files of their own, in which every word of the vocabulary occurs."""
    directory = SCRATCH / f"text-{case.vocabulary}-{case.document}"
    if not directory.exists():
        draw = random.Random(0)
        directory.mkdir(parents=True)
        words = list(range(case.vocabulary))
        draw.shuffle(words)
        for number in range(DOCUMENTS):
            own = words[number::DOCUMENTS]
            some = own + draw.choices(words, k=case.document - len(own))
            (directory / f"{number}.txt").write_text(" ".join(f"w{word}" for word in some))
    return directory


def composed(case: Case, precision: str) -> dict[str, Any]:
    arguments = [
        *("experiment=pytorch_examples_200_tied", "scheduler=constant", "data=files"),
        *(f"data.path={text(case)}", "data.unit=file", "tokenizer=word"),
        *(
            "data.valid_fraction=0",
            "data.test_fraction=0",
            f"data.batch_size={LANES}",
            f"data.bptt={case.bptt}",
        ),
        *("data.protocol=document", f"trainer.precision={precision}", f"outputs={SCRATCH}"),
    ]
    config, _ = check(compose(arguments))
    return config


def measured(case: Case, given: Settings) -> tuple[PeakMemory, int]:
    """The peak, and the formula's bytes for the vocabulary that the text really has."""
    config = composed(case, given.precision)
    data = make_data(config)
    size = data.tokenizer.vocabulary_size
    trainer = make_trainer(config, max_steps=given.steps, limit_val_batches=0)
    keep_freed_memory()
    with PeakMemory() as peak:
        task = make_task(config, data)
        trainer.fit(task, datamodule=data)
    return peak, formula(size, case.bptt, task.head.chunk_size, given.precision)


def formula(vocabulary: int, bptt: int, chunk: int, precision: str) -> int:
    """Bytes of weights and gradients, the odds of a chunk in the precision of the products, and
    what the layers keep for backward, with the gradient of one's gates."""
    width = 4 if precision == "32-true" else 2
    parameters = vocabulary * (SIZE + 1) + LAYERS * 4 * SIZE * (2 * SIZE + 2)
    positions = LANES * bptt
    odds = min(chunk, positions) * vocabulary * width
    kept = LAYERS * positions * (2 + 1 + 4) * SIZE * width
    return 8 * parameters + odds + kept + positions * 4 * SIZE * width


def main() -> None:
    given = settings(Settings)
    print_header()
    table = Table(title=f"2x200 tied, {LANES} lanes, {given.precision}", title_justify="left")
    columns = ("vocabulary", "document", "bptt", "peak", "formula", "logits of a window, fp32")
    for column in columns:
        table.add_column(column, justify="right")
    for case in CASES:
        peak, expected = in_child(measured, case, given)
        logits = LANES * case.bptt * case.vocabulary * 4
        sizes = (f"{case.vocabulary:,}", f"{case.document:,}", f"{case.bptt:,}")
        table.add_row(*sizes, str(peak), *(f"{n / 2**20:,.0f} MiB" for n in (expected, logits)))
    console.print(table)


if __name__ == "__main__":
    main()
