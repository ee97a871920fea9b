"""How well stacks of layers learn with residual blocks and without, on a slice of WikiText-2.

    python benchmarks/depth.py path=DIR [layers=6] [size=96] [steps=300] [cell=lstm] [seed=1]

Trains on the first nine tenths of valid.txt, whose 2,000 most frequent words are kept, in 10 lanes
of 16 positions, with conf's own optimizer and clipping and without dropout, and prints the nats a
token of the last 20 updates and of the last tenth.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from measure import console, print_header, settings
from omegaconf import MISSING
from rich.table import Table
from torch import Tensor, nn

from lmkit.assembly import build_model
from lmkit.config.build import build
from lmkit.config.compose import compose
from lmkit.model import detached
from lmkit.tokenizer import Word

WORDS, LANES, TIME = 2000, 10, 16
KINDS = {
    "two layers": ("model.num_layers=2",),
    "": (),
    "residual=rms_norm": ("model.residual=rms_norm",),
    "residual=rms_norm expansion=2": ("model.residual=rms_norm", "model.expansion=2"),
    "residual=layer_norm": ("model.residual=layer_norm",),
}


@dataclass
class DepthSettings:
    """path: WikiText-2's directory."""

    path: str = MISSING
    cell: str = "lstm"
    layers: int = 6
    size: int = 96
    steps: int = 300
    seed: int = 1


def corpus(path: str) -> tuple[Tensor, Tensor]:
    """The words of training and of validation, (lanes, words) each."""
    text = (Path(path) / "valid.txt").read_text(encoding="utf-8")
    tokenizer = Word(vocabulary_size=WORDS)
    tokenizer.train([text])
    ids = torch.from_numpy(tokenizer.encode([text]).ids.astype("int64"))
    parts = ids.split([int(len(ids) * 0.9), len(ids) - int(len(ids) * 0.9)])
    train, valid = (part[: len(part) // LANES * LANES].view(LANES, -1) for part in parts)
    return train, valid


class Trained:
    """A model, trained when it is made."""

    def __init__(self, config: dict[str, Any], seed: int, words: Tensor, steps: int) -> None:
        torch.manual_seed(seed)
        self.model, self.head = build_model(config, WORDS)
        parameters = list(dict.fromkeys([*self.model.parameters(), *self.head.parameters()]))
        optimizer = build("optimizer", config["optimizer"], params=parameters)
        state, windows, self.losses = None, (words.shape[1] - 1) // TIME, []
        for step in range(steps):
            at = step % windows * TIME
            state = state if at else self.model.initial_state(LANES)
            loss, state = self.loss(words[:, at : at + TIME + 1], state)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, config["trainer"]["gradient_clip_val"])
            optimizer.step()
            self.losses.append(loss.item())

    def loss(self, words: Tensor, state: Any) -> tuple[Tensor, Any]:
        """The mean nll of all words but the first, and the state after them."""
        tokens, targets = words[:, :-1], words[:, 1:]
        resets = torch.zeros_like(tokens, dtype=torch.bool)
        hidden, _, state = self.model(tokens, resets, state)
        weight = torch.full(targets.shape, 1 / targets.numel())
        return self.head.loss(hidden, targets, weight).loss, detached(state)


def main() -> None:
    given = settings(DepthSettings)
    print_header()
    train, valid = corpus(given.path)
    table = Table(title=f"{given.cell}, {given.layers} layers of {given.size}, nats a token")
    for column in ("", "first update", "last 20 updates", "the rest of the text"):
        table.add_column(column, justify="right" if column else "left")
    sizes = [f"model.{kind}_size={given.size}" for kind in ("embedding", "hidden")]
    for name, more in KINDS.items():
        layers = f"model.num_layers={given.layers}"
        config = compose([f"model={given.cell}", "model.dropout=0", *sizes, layers, *more]).config
        trained = Trained(config, given.seed, train, given.steps)
        with torch.no_grad():
            nll, _ = trained.loss(valid, trained.model.initial_state(LANES))
        last = sum(trained.losses[-20:]) / 20
        table.add_row(name, *(f"{each:.3f}" for each in (trained.losses[0], last, nll.item())))
    console.print(table)


if __name__ == "__main__":
    main()
