"""Training speed of every option of the config group `model` but n-grams, relative to the LSTM's.

    python benchmarks/cells.py [size=200|650] [cells=[gru,mogrifier]] [precision=32-true] [rounds=5]
        [steps=2] [threads=2]

A step is forward, head, backward, clipping and plain SGD, on random words of a vocabulary of 33,278
in 20 lanes of 35 positions, through two layers of `size` units, tied. An LSTM with projection has
twice as many cells, and outputs of `size`. All take turns in one process, `steps` steps each.
`lstm in blocks` is model.residual=rms_norm with model.expansion=2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from measure import Rates, console, print_header, settings
from torch import nn

from lmkit.assembly import build_model
from lmkit.config.compose import compose
from lmkit.config.groups import CONF, group_options
from lmkit.model import detached
from lmkit.system.allocator import keep_freed_memory

VOCABULARY, LANES, TIME = 33_278, 20, 35
BASELINE, BLOCKS, COUNTED = "lstm", "lstm in blocks", "ngram"
MORE = {
    "lstmp": ("model.hidden_size={twice}", "model.projection_size={size}"),
    BLOCKS: ("model.residual=rms_norm", "model.expansion=2"),
}


@dataclass
class CellSettings:
    """cells: options of `model`, and `lstm in blocks`; all of them unless given."""

    size: int = 200
    cells: list[str] = field(default_factory=list)
    precision: str = "32-true"
    rounds: int = 5
    steps: int = 2
    threads: int = 2


def training(cell: str, given: CellSettings) -> Callable[[], int]:
    """Some steps of a model of its own; returns the number of tokens."""
    more = [each.format(size=given.size, twice=2 * given.size) for each in MORE.get(cell, ())]
    sizes = [f"model.embedding_size={given.size}", f"model.hidden_size={given.size}"]
    option = f"model={BASELINE if cell == BLOCKS else cell}"
    config = compose([option, *sizes, *more]).config
    model, head = build_model(config, VOCABULARY)
    parameters = list(dict.fromkeys([*model.parameters(), *head.parameters()]))
    optimizer = torch.optim.SGD(parameters, lr=1e-3)
    tokens = torch.randint(VOCABULARY, (LANES, TIME + 1))
    resets = torch.zeros(LANES, TIME, dtype=torch.bool)
    weight = torch.full((LANES, TIME), 1 / (LANES * TIME))
    state = model.initial_state(LANES)

    def run() -> int:
        nonlocal state
        for _ in range(given.steps):
            with torch.autocast("cpu", torch.bfloat16, enabled=given.precision == "bf16-mixed"):
                output = model(tokens[:, :-1], resets, state)
                loss = head.loss(output.hidden, tokens[:, 1:], weight).loss
            state = detached(output.state)
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, config["trainer"]["gradient_clip_val"])
            optimizer.step()
            optimizer.zero_grad()
        return given.steps * LANES * TIME

    return run


def main() -> None:
    given = settings(CellSettings)
    torch.set_num_threads(given.threads)
    torch.manual_seed(1)
    print_header()
    keep_freed_memory()
    trained = [option for option in group_options([CONF])["model"] if option != COUNTED]
    cells = given.cells or [*trained, BLOCKS]
    rates = Rates(BASELINE)
    sides = {cell: training(cell, given) for cell in dict.fromkeys([BASELINE, *cells])}
    rates.turn_about(sides, given.rounds)
    console.print(rates.table(f"a training step, 2x{given.size}, {given.precision}"))


if __name__ == "__main__":
    main()
