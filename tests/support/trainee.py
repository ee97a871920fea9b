"""A small real training run, for tests that interrupt it; imported once, forked many times."""

import math
import multiprocessing
import os
import random
import signal
import sys
import time
import warnings
from pathlib import Path
from typing import Any
from unittest.mock import patch

import lightning.pytorch as pl
import numpy as np
import torch
from torch import nn

from lmkit.run.checkpoints import AtomicCheckpointIO, latest_checkpoint
from lmkit.system.signals import Stopped, StopSignals
from lmkit.training.callbacks import Checkpoint, Samples, StopOnNonFinite, StopOnSignal
from lmkit.training.loggers import JsonlLogger

WINDOWS = 12  # an epoch
HARD_LIMIT = 60.0


class Loader:
    """Batches as a pure function of (epoch, position), as lmkit's own loader gives them."""

    def __init__(self, train: bool) -> None:
        self.train = train
        self.epoch, self.position, self.resumed = -1, 0, False

    def __len__(self) -> int:
        return WINDOWS

    def __iter__(self):
        if not self.resumed:
            self.epoch += 1
            self.position = 0
        self.resumed = False
        while self.position < WINDOWS:
            epoch = self.epoch if self.train else 1000
            generator = torch.Generator().manual_seed(epoch * WINDOWS + self.position)
            self.position += 1
            yield torch.randn(4, 8, generator=generator)

    def state_dict(self):
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state):
        self.epoch, self.position = state["epoch"], state["position"]
        self.resumed = not state["ended"]


class Net(pl.LightningModule):
    """Uses every generator and carries a state and sums, as lmkit's task does."""

    def __init__(self, options: dict[str, Any]) -> None:
        super().__init__()
        self.options = options
        self.layers = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5), nn.Linear(8, 8))
        self.carried = torch.zeros(4, 8)
        self.nll_sum = 0.0
        self.tokens_seen = 0

    def training_step(self, batch, batch_idx):
        if self.trainer.global_step == self.options.get("nan_at"):
            batch = batch * math.nan
        noise = random.random() + float(np.random.rand())
        hidden = self.layers(batch + self.carried)
        self.carried = hidden.detach().tanh()
        loss = (hidden - batch).square().mean() * noise
        self.nll_sum += float(loss)
        self.tokens_seen += batch.numel()
        return loss

    def on_train_batch_end(self, outputs, batch, batch_idx):
        if (batch_idx + 1) % self.trainer.accumulate_grad_batches:
            return
        step = self.trainer.global_step
        if step % 3 == 0:
            self.trainer.logger.log_metrics({"train/nll": self.nll_sum, "lr": self.lr}, step)
            self.nll_sum = 0.0
        if step == self.options.get("spoil_at"):
            self.layers[0].weight.data[0, 0] = math.inf
        self._hurt("train", step)

    def validation_step(self, batch, batch_idx):
        if batch_idx == 5:
            self._hurt("validation", self.trainer.global_step)
        self.log("val/nll", self.layers(batch).square().mean() * (1 + self.trainer.global_step % 5))

    @property
    def lr(self) -> float:
        return self.trainer.optimizers[0].param_groups[0]["lr"]

    def _hurt(self, where: str, step: int) -> None:
        if self.options.get("at") == [where, step] and not self.trainer.sanity_checking:
            for number in self.options["signals"]:
                os.kill(os.getpid(), number)
            time.sleep(0.05)

    def configure_optimizers(self):
        assert self.trainer.estimated_stepping_batches  # has the loaders made before the resume
        optimizer = torch.optim.Adam(self.parameters(), 0.05)
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.25, patience=0)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": plateau, "monitor": "val/nll", "interval": "epoch"},
        }

    def train_dataloader(self):
        return Loader(True)

    def val_dataloader(self):
        return Loader(False)

    def on_save_checkpoint(self, checkpoint):
        checkpoint["net"] = [self.carried, self.nll_sum, self.tokens_seen]

    def on_load_checkpoint(self, checkpoint):
        self.carried, self.nll_sum, self.tokens_seen = checkpoint["net"]


def sample(net: Net, prompt: str, num_tokens: int, seed: int) -> str:
    """Consumes every generator, and says so."""
    torch.manual_seed(seed)
    return f"{prompt} {torch.rand(()):.3f} {random.random():.3f} {np.random.rand():.3f}"


def train(directory: Path, options: dict[str, Any]) -> None:
    """Fit, going on from the latest checkpoint; exits with the code of a stop."""
    warnings.filterwarnings("ignore")
    sys.stderr = (directory / "stderr.txt").open("a", buffering=1)
    torch.set_num_threads(1)
    pl.seed_everything(options.get("seed", 1), verbose=False)
    logger = JsonlLogger(directory)
    with StopSignals() as signals:
        trainer = pl.Trainer(
            **{"max_epochs": 3, "num_sanity_val_steps": 1, **options.get("trainer", {})},
            accelerator="cpu",
            logger=logger,
            default_root_dir=directory,
            plugins=[AtomicCheckpointIO({"config": "abc"})],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[
                StopOnSignal(signals),
                StopOnNonFinite(),
                Samples(sample, directory / "samples.jsonl", "the", 5, 7),
                Checkpoint(**{"every_n_train_steps": 4, **options.get("checkpoint", {})}),
            ],
        )
        logger.follow(trainer)
        net = Net(options)
        try:
            trainer.fit(net, ckpt_path=latest_checkpoint(directory / "checkpoints"))
        except Stopped as stop:
            handler = signal.getsignal(signal.SIGINT)
            assert handler == signals._handle
            sys.exit(stop.exit_code)
    torch.save([list(net.parameters()), trainer.optimizers[0].state_dict()], directory / "end.pt")


def run(directory: Path, **options: Any) -> int:
    """Train in a process of its own; its exit code, negative when a signal killed it."""
    directory.mkdir(parents=True, exist_ok=True)
    process = start(directory, **options)
    process.join(HARD_LIMIT)
    if process.is_alive():
        process.kill()
        raise TimeoutError(f"{directory} {options}")
    return process.exitcode


def start(directory: Path, **options: Any):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["trainee"])
    process = context.Process(target=train, args=(directory, options))
    # The server does not take over sys.path (cpython #101225), nor say that it found nothing.
    with patch.dict(os.environ, PYTHONPATH=str(Path(__file__).parent)):
        process.start()
    return process
