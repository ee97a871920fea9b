"""The callback that keeps an average of the weights, and evaluates it in their place."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from lmkit.metrics import TokenNLL
from lmkit.optim import Averaging
from lmkit.run.checkpoints import AVERAGED
from lmkit.training.fit_loop import is_fitting, is_within_update
from lmkit.training.task import Task

log = logging.getLogger(__name__)


class WeightAveraging(Callback):
    """Averages the weights after each update, as `averaging` says.

    A validation, and all callbacks at its end, see the average; training goes on from the weights
    themselves. A checkpoint has the weights in its `state_dict` and the average beside them. Comes
    after callbacks that use the weights at the end of a validation, and before `Checkpoint`.
    """

    def __init__(self, averaging: Averaging) -> None:
        self.averaging = averaging
        self._raw: list[Tensor] | None = None  # the weights, while the average is in their place
        self._rival: TokenNLL | None = None  # of the validation that is running

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        if not is_within_update(trainer):
            self.averaging.update(list(pl_module.parameters()), trainer.is_last_batch)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not is_fitting(trainer):
            return
        assert isinstance(pl_module, Task)
        if (rival := self.averaging.rival) is not None:
            with _instead(pl_module, rival):
                self._rival = _validate(trainer, pl_module)
        if (weights := self.averaging.weights) is not None:
            self._raw = _exchange(pl_module, weights)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not is_fitting(trainer):
            return
        assert isinstance(pl_module, Task)
        rival = None if self._rival is None else _mean(self._rival)
        if self.averaging.validated(_mean(pl_module.val_sums), rival):
            assert self._rival is not None
            assert self.averaging.weights is not None
            pl_module.val_sums = self._rival
            _exchange(pl_module, self.averaging.weights)
        self._rival = None

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._raw is not None:
            _exchange(pl_module, self._raw)
            self._raw = None

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """What is tested is the average, unless the best checkpoint takes its place."""
        if trainer.is_global_zero and (remark := self.averaging.remark()):
            log.warning("%s", remark)
        if self.averaging.weights is not None:
            _exchange(pl_module, self.averaging.weights)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if self._raw is not None:  # within a validation
            checkpoint["state_dict"] |= _named(pl_module, self._raw)
        if self.averaging.weights is not None:
            checkpoint[AVERAGED] = _named(pl_module, self.averaging.weights)

    def state_dict(self) -> dict[str, Any]:
        return self.averaging.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.averaging.load_state_dict(state_dict)


def _exchange(module: LightningModule, weights: Sequence[Tensor]) -> list[Tensor]:
    """Put weights into the parameters; returns those that were there."""
    before = []
    for parameter, weight in zip(module.parameters(), weights, strict=True):
        before.append(parameter.data)
        parameter.data = weight.to(parameter.device)
    return before


@contextmanager
def _instead(module: LightningModule, weights: Sequence[Tensor]) -> Iterator[None]:
    """Within this context the parameters have these weights."""
    before = _exchange(module, weights)
    try:
        yield
    finally:
        _exchange(module, before)


def _named(module: LightningModule, weights: Sequence[Tensor]) -> dict[str, Tensor]:
    """Weights by all names that their parameters have; a tied one has two."""
    by_parameter = dict(zip(map(id, module.parameters()), weights, strict=True))
    named: Mapping[str, Tensor] = module.state_dict(keep_vars=True)
    return {name: by_parameter[id(p)] for name, p in named.items() if id(p) in by_parameter}


def _validate(trainer: Trainer, task: Task) -> TokenNLL:
    """The sums over the validation's windows with the present weights."""
    sums = TokenNLL(task.val_sums.nll_sum.dtype).to(task.device)
    loader: Any = trainer.val_dataloaders
    for index, window in enumerate(loader):
        if index >= trainer.num_val_batches[0]:
            break
        window = trainer.strategy.batch_to_device(window)
        with trainer.precision_plugin.val_step_context(), torch.inference_mode():
            task.evaluate("rival", window, sums)
    return sums


def _mean(sums: TokenNLL) -> float:
    nll_sum, num_tokens = sums.compute()
    return nll_sum / max(num_tokens, 1)
