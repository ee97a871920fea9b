"""The callback that ends a training on Ctrl-C, SIGTERM or SIGUSR1, with a checkpoint."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from lmkit.system.signals import Stopped, StopSignals
from lmkit.training.callbacks.checkpoint import Checkpoint
from lmkit.training.fit_loop import is_fitting, is_within_update


class StopOnSignal(Callback):
    """Saves a checkpoint and raises `Stopped`, in all processes between the same two steps.

    A run of one process also stops between two batches of a validation, and then resumes with that
    validation. `trainer.should_stop` would not do: it validates and logs out of schedule first.
    """

    def __init__(self, signals: StopSignals) -> None:
        self.signals = signals

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.signals.install()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.signals.install()
        self.signals.deferred = True

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self._stop_if_asked(trainer)

    def on_validation_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        # Processes validate different numbers of windows: they only meet between two steps.
        alone = trainer.world_size == 1
        if alone and is_fitting(trainer) and not is_within_update(trainer):
            self._stop_if_asked(trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.signals.deferred = False
        if self.signals.received is not None:  # during the last step, which has been saved
            raise Stopped(self.signals.received)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self.signals.deferred = False

    def _stop_if_asked(self, trainer: Trainer) -> None:
        received = self.signals.received or 0
        if trainer.world_size > 1:
            here = torch.tensor(received, device=trainer.strategy.root_device)
            received = int(trainer.strategy.reduce(here, reduce_op="max"))
        if received:
            self.signals.received = received  # whichever process got it, all stop
            for callback in trainer.callbacks:  # type: ignore[attr-defined]
                if isinstance(callback, Checkpoint):
                    callback.save(trainer)
            raise Stopped(received)
