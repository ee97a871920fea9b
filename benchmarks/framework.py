"""What Lightning, logging, progress and data cost a step, beside the bare loop of lmkit's parts.

    python benchmarks/framework.py path=DIR [shape=200] [precision=bf16-mixed] [steps=60]
        [rounds=10]

The bare loop has the same model, head, optimiser and clipping, and windows made beforehand.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from measure import console, print_header, settings
from torch import nn
from turns import LMKIT, Settings, TurnAbout, make_trainer, start

from lmkit.model import detached
from lmkit.optim import global_norm
from lmkit.training.components import make_task
from lmkit.training.task import Task
from lmkit.windows import Window

BARE = "the bare loop"


@dataclass
class FrameworkSettings(Settings):
    shape: str = "200"
    precision: str = "bf16-mixed"
    steps: int = 60
    rounds: int = 10


class Bare:
    """The parts of a task, without a trainer; goes on between calls."""

    def __init__(self, task: Task, config: dict[str, Any]) -> None:
        self.task = task
        self.model, self.head = task.model.train(), task.head
        self.optimizer = task.make_optimizer(task.parameters())
        self.model.embedding.sparse_gradient = not self.model.tie_weights
        self.clip = config["trainer"]["gradient_clip_val"]
        self.mixed = config["trainer"]["precision"] == "bf16-mixed"
        self.state = self.model.initial_state(config["data"]["batch_size"])

    def take_weights(self, model: nn.Module, head: nn.Module) -> None:
        self.model.load_state_dict(model.state_dict())
        self.head.load_state_dict(head.state_dict())

    def train(self, windows: Iterable[Window]) -> None:
        (group,) = self.optimizer.param_groups
        lr = group["lr"]
        for window in windows:
            with torch.autocast("cpu", torch.bfloat16) if self.mixed else nullcontext():
                hidden, _, state = self.model(window.tokens, window.resets, self.state)
                loss = self.head.loss(hidden, window.targets, window.weight).loss
            loss.backward()
            self.state = detached(state)
            norm = float(global_norm(group["params"]))
            group["lr"] = lr * min(1.0, self.clip / norm)
            self.optimizer.step()
            group["lr"] = lr
            self.head.keep_gradient()
            self.optimizer.zero_grad()


def main() -> None:
    given = settings(FrameworkSettings)
    print_header()
    config, data = start(given)
    block = given.steps // given.rounds
    windows = list(islice(data.loader("train", train=True), given.steps + block))
    turns = TurnAbout({BARE: Bare(make_task(config, data), config)}, windows, block)
    trainer = make_trainer(config, turns, max_steps=len(windows), limit_val_batches=0)
    trainer.fit(make_task(config, data), datamodule=data)
    console.print(turns.rates.table(f"training {given.shape}, {given.precision}"))
    share = turns.rates.median_ratio(LMKIT)
    console.print(f"the framework's share of a step: {1 - share:.1%}")


if __name__ == "__main__":
    main()
