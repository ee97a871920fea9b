"""A training of lmkit's, from config to fit, that takes turns with the plain loop."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
from measure import SCRATCH, Rates, now
from omegaconf import MISSING
from torch import Tensor, nn

from lmkit.assembly import make_data
from lmkit.config.check import check
from lmkit.config.compose import compose
from lmkit.config.trainer import build_trainer
from lmkit.kernels.order import any_order
from lmkit.system.allocator import keep_freed_memory
from lmkit.training.callbacks.progress import Progress
from lmkit.training.loggers import JsonlLogger
from lmkit.windows import DataModule, Window

PLAIN, PLAIN_BF16, LMKIT = "plain PyTorch", "plain PyTorch, bf16 autocast", "lmkit"

# Shapes that are no presets. awd, (c) of docs/performance.md, has the sizes of Merity et al. 2018;
# 1500_tied is the largest of the pytorch/examples language model. tiny is
# for trying a benchmark out.
LARGER = {
    "awd": (
        "model.embedding_size=400",
        "model.hidden_size=1150",
        "model.num_layers=3",
        "model.tie_weights=true",
        "data.bptt=70",
        "data.batch_size=80",
        "optimizer.lr=5",
    ),
    "tiny": (
        *("model.embedding_size=16", "model.hidden_size=16"),
        *("data.batch_size=4", "data.bptt=8"),
    ),
    "1500_tied": ("model.embedding_size=1500", "model.hidden_size=1500", "model.dropout=0.65"),
}


@dataclass
class Settings:
    """path: WikiText's directory. shape: 200, 200_tied, 650 or 650_tied, the presets of the
    pytorch/examples language model, or one of LARGER. accelerator: cpu or cuda. dropout: the
    preset's unless given."""

    path: str = MISSING
    shape: str = "200_tied"
    precision: str = "32-true"
    accelerator: str = "cpu"
    dropout: float | None = None


def composed(given: Settings) -> dict[str, Any]:
    """The preset's whole config, checked, as `lmkit train` has it."""
    arguments = [
        f"experiment=pytorch_examples_{'650_tied' if given.shape in LARGER else given.shape}",
        "scheduler=constant",  # the preset's waits for a validation
        f"data.path={given.path}",
        f"trainer.precision={given.precision}",
        f"trainer.accelerator={given.accelerator}",
        f"outputs={SCRATCH}",
    ]
    arguments += LARGER.get(given.shape, ())
    if given.dropout is not None:
        arguments.append(f"model.dropout={given.dropout}")
    config, _ = check(compose(arguments))
    return config


def start(given: Settings) -> tuple[dict[str, Any], DataModule]:
    """The config and its data, from the config's seed."""
    config = composed(given)
    pl.seed_everything(config["seed"], verbose=False)
    return config, make_data(config)


def make_trainer(config: Mapping[str, Any], *callbacks: pl.Callback, **settings: Any) -> pl.Trainer:
    """The config's trainer with the progress and metrics of a run, and no checkpoints."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    logger = JsonlLogger(SCRATCH)
    node = {**config["trainer"], **settings}
    trainer = build_trainer(node, logger=logger, callbacks=[Progress(), *callbacks])
    logger.follow(trainer)
    return trainer


def flops(model: nn.Module, head: nn.Module) -> int:
    """Floating-point operations of the matrix products of one token, forward."""
    matrices = [p for p in model.layers.parameters() if p.dim() == 2]
    return 2 * sum(matrix.numel() for matrix in [*matrices, head.weight])


class TurnAbout(pl.Callback):
    """Hands over to the plain loop after every `block` steps of a fit, on the same windows.

    It starts from the fit's weights. All of Lightning's own time between the windows is on
    lmkit's clock.
    """

    def __init__(self, sides: Mapping[str, Any], batches: list[Any], block: int) -> None:
        self.sides = sides
        self.batches = batches
        self.block = block
        self.rates = Rates(next(iter(sides)))
        self.losses: list[Tensor] = []
        self.done = self.num_tokens = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        keep_freed_memory()
        self.flops = flops(pl_module.model, pl_module.head)
        for side in self.sides.values():
            side.take_weights(pl_module.model, pl_module.head)
        self.begin = now()

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Window,
        batch_idx: int,
    ) -> None:
        self.losses.append(outputs["loss"])
        self.num_tokens += batch.num_targets
        if len(self.losses) % self.block and len(self.losses) < len(self.batches):
            return
        self.rates.add(LMKIT, self.num_tokens, now() - self.begin)
        for name, side in self.sides.items():
            with any_order():  # lmkit asks for a fixed one
                begin = now()
                side.train(self.batches[self.done : len(self.losses)])
                self.rates.add(name, self.num_tokens, now() - begin)
        self.done, self.num_tokens = len(self.losses), 0
        self.begin = now()
