"""The LightningModule: trains and evaluates on windows and carries the state between them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from lightning.pytorch.accelerators import MPSAccelerator
from lightning.pytorch.utilities.enums import GradClipAlgorithmType
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from lmkit.head import Head
from lmkit.metrics import TokenNLL, bits_per_byte, perplexity
from lmkit.model import LanguageModel, Reader, finite, joined, share_of
from lmkit.model.dropout import Masks
from lmkit.optim import (
    Stepping,
    clip_norm,
    global_norm,
    is_plain_sgd,
    learning_rates,
    scale_rates,
)
from lmkit.regularizers import Regularizer
from lmkit.system.rendezvous import gather
from lmkit.training.computation import Computation
from lmkit.training.fit_loop import is_within_update, restore_loaders, stops_by_itself
from lmkit.training.training_values import TrainingValues
from lmkit.windows import Window

MakeOptimizer = Callable[[Iterable[nn.Parameter]], Optimizer]
MakeScheduler = Callable[[Optimizer, float], LRScheduler | None]


class Task(Computation):
    """Trains and evaluates a model: truncated BPTT, one window per batch, automatic optimisation.

    The loss is the head's plus the terms of the regularizers, weighted so that it is the mean over
    the tokens of an update.

    The state of each stage lives outside the registered buffers (DDP would broadcast them),
    detached, and starts from zero at window 0 of every pass. Training values are logged every
    `trainer.log_every_n_steps` updates, over the tokens since the last time, and nothing
    waits for the device in between.
    """

    def __init__(
        self,
        model: LanguageModel,
        head: Head,
        make_optimizer: MakeOptimizer,
        make_scheduler: MakeScheduler = lambda optimizer, num_steps: None,
        num_bytes: dict[str, tuple[int, int]] | None = None,
        seed: int = 1,
        stepping: Stepping = Stepping(),  # noqa: B008 - it is frozen
        regularizers: Mapping[str, Regularizer] | None = None,
    ) -> None:
        """make_optimizer: of the parameters. make_scheduler: of the optimizer and the updates of
        the whole training; without one the rate stays. num_bytes: tokens and UTF-8 bytes of the
        splits `val` and `test` when the tokenizer loses nothing (bits per byte is logged for
        these). seed: of the masks of dropout. regularizers: by the name that the values of each are
        logged under."""
        super().__init__(model, head, regularizers or {})
        self.seed = seed
        self.make_optimizer = make_optimizer
        self.make_scheduler = make_scheduler
        self.stepping = stepping
        self.num_bytes = num_bytes or {}
        self.validated: dict[str, float] = {}  # values of the newest validation
        self.val_sums = TokenNLL()
        self.test_sums = TokenNLL()
        self._readers: dict[str, Reader] = {}  # by stage
        self.values = TrainingValues(self.names)
        self._grad_norm: Tensor | None = None  # before clipping, of the last update
        self._gradients: list[Tensor | None] | None = None  # if they are made with the loss
        self._rate = 1.0  # factor of the learning rate of the update that is being made
        self._unseen = False  # by a schedule: the newest validation
        self._stops = False  # after the update that is being made

    def setup(self, stage: str) -> None:
        if isinstance(self.trainer.accelerator, MPSAccelerator):  # it has no float64
            self.values.sums = self.values.sums.float()
            self.val_sums = TokenNLL(torch.float32)
            self.test_sums = TokenNLL(torch.float32)

    @property
    def tokens_seen(self) -> int:
        """Tokens that have been trained on, over all processes."""
        return self.values.tokens_seen

    def reader(self, stage: str, window: Window) -> Reader:
        """What reads a stage, before this window of it."""
        if window.index == 0:
            self._readers[stage] = Reader(self.model)
        return self._readers[stage]

    def training_step(self, window: Window, batch_idx: int) -> Tensor:
        reader = self.reader("train", window)
        state = reader.before(window.tokens)
        place = (window.epoch, window.index, window.first_lane, window.num_lanes)
        step = self.train_on(window, state, Masks(self.seed, *place))
        reader.state = step.state
        self._gradients = step.gradients
        self._rate = window.rate
        self.values.add(step.sums, window.num_targets)
        return step.loss

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        if self._gradients is None:
            super().backward(loss, *args, **kwargs)
            return
        for parameter, gradient in zip(self.trained(), self._gradients, strict=True):
            parameter.grad = gradient

    def on_train_start(self) -> None:
        restore_loaders(self.trainer)

    def on_train_batch_start(self, batch: Window, batch_idx: int) -> None:
        first = batch_idx % self.trainer.accumulate_grad_batches == 0
        self.values.begin_window(is_first=first)

    def on_train_batch_end(self, outputs: Any, batch: Window, batch_idx: int) -> None:
        self.values.end_window()
        trainer = self.trainer
        if trainer.global_step == trainer.max_steps:
            trainer.should_stop = True  # rather than end in mid-epoch without a validation
        self._stops |= trainer.should_stop
        accumulating = is_within_update(trainer)
        trainer.should_stop = self._stops and not accumulating  # a time limit may come within one
        if accumulating:
            return
        self._stops = False
        now = trainer.global_step % trainer.log_every_n_steps == 0  # type: ignore[attr-defined]
        if now and self.values.num_targets:  # with bptt=1 it may have reset positions alone
            values = self._means(trainer.strategy.reduce(self.values.sums, reduce_op="sum"))
            if self._grad_norm is not None:
                values["train/grad_norm"] = float(self._grad_norm)
            for logger in trainer.loggers:
                logger.log_metrics(values, step=trainer.global_step)
            self.values.begin_anew()

    def running(self) -> dict[str, float]:
        """Training values since the last logging, as this process sees them; waits for the
        device, so not for every step."""
        if not self.values.num_targets:
            return {}
        return self._means(self.values.sums * self.trainer.world_size)

    def _means(self, sums: Tensor) -> dict[str, float]:
        return self.values.means(sums) | learning_rates(self.trainer.optimizers[0])

    def on_validation_start(self) -> None:
        self.values.stop_clock()

    def validation_step(self, window: Window, batch_idx: int) -> None:
        self.evaluate("val", window, self.val_sums)

    def test_step(self, window: Window, batch_idx: int) -> None:
        self.evaluate("test", window, self.test_sums)

    def on_validation_epoch_end(self) -> None:
        self._report("val", self.val_sums)

    def on_test_epoch_end(self) -> None:
        self._report("test", self.test_sums)

    def evaluate(self, stage: str, window: Window, sums: TokenNLL) -> None:
        """Add a window's nll to sums, read from the state after the stage's last window."""
        reader = self.reader(stage, window)
        state = reader.before(window.tokens)
        nll, reader.state = self.score(stage, window, state)
        sums.update(nll, window.mask)

    def _report(self, stage: str, sums: TokenNLL) -> None:
        nll_sum, num_tokens = sums.compute()
        sums.reset()
        nll = nll_sum / num_tokens if num_tokens else math.nan
        values = {f"{stage}/nll": nll, f"{stage}/perplexity": perplexity(nll)}
        whole, num_bytes = self.num_bytes.get(stage, (None, 0))
        if num_tokens == whole:
            values[f"{stage}/bits_per_byte"] = bits_per_byte(nll_sum, num_bytes)
        if stage == "val" and not self.trainer.sanity_checking:
            self.validated, self._unseen = values, True
        # Lightning's own step for these rows counts from 0.
        self.log_dict(_exact(values | {"step": self.trainer.global_step}))

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        if self._rate != 1:
            scale_rates(self.trainer.optimizers[0], self._rate)

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip ourselves: Lightning refuses fused optimisers under autocast, and would leave the
        gradients of a loss scaler in its scale."""
        if not gradient_clip_val:
            return
        optimizer = self.trainer.optimizers[0]
        parameters = self._optimized()
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        if scaler is not None and getattr(optimizer, "_step_supports_amp_scaling", False):
            scaler.unscale_(optimizer)  # a fused step would do so itself, when all is clipped
        if gradient_clip_algorithm == GradClipAlgorithmType.VALUE:
            nn.utils.clip_grad_value_(parameters, gradient_clip_val)
        else:
            clip_norm(optimizer, parameters, gradient_clip_val, self.gradient_norm())

    def gradient_norm(self) -> Tensor:
        """The gradient's norm in the update that is about to be made, before clipping."""
        if self._grad_norm is None:
            self._grad_norm = global_norm(self._optimized())
        return self._grad_norm

    def _optimized(self) -> list[nn.Parameter]:
        """The optimizer's parameters, in the order of the task's whatever its groups: the norm is a
        sum over them."""
        groups = self.trainer.optimizers[0].param_groups
        every = {id(parameter) for group in groups for parameter in group["params"]}
        return [parameter for parameter in self.parameters() if id(parameter) in every]

    def drop_update(self) -> None:
        """Discard the update that is about to be made, and the sums of its windows."""
        for parameter in self._optimized():
            parameter.grad = None
        self._grad_norm = None
        self.values.drop_update()
        reader = self._readers["train"]
        assert reader.state is not None
        reader.state = finite(reader.state)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        optimizer = self.trainer.optimizers[0]
        self._grad_norm = None
        rates = [group["lr"] for group in optimizer.param_groups]
        super().optimizer_step(*args, **kwargs)
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate  # scaled for this update alone
        self.head.keep_gradient()
        optimizer.zero_grad()  # Lightning would keep the others through the next forward

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Step ReduceLROnPlateau once per validation, and not in epochs without one."""
        if isinstance(scheduler, ReduceLROnPlateau):
            if not self._unseen:
                return
            self._unseen = False
        super().lr_scheduler_step(scheduler, metric)

    def configure_optimizers(self) -> Any:
        optimizer = self.make_optimizer(self.parameters())
        alone = self.device.type == "cpu" and self.trainer.world_size == 1
        by_norm = self.trainer.gradient_clip_algorithm != GradClipAlgorithmType.VALUE
        sparse = alone and by_norm and is_plain_sgd(optimizer)
        self.model.embedding.sparse_gradient = self.head.sparse_gradient = sparse
        scheduler = self.make_scheduler(optimizer, self.trainer.estimated_stepping_batches)
        if scheduler is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": self.stepping.settings(scheduler)}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the state of all lanes in their order, and the sums of every process by rank."""
        reader = self._readers.get("train")
        own = {"state": reader and reader.state, "sums": self.values.sums}
        every = gather(own)
        states = [process["state"] for process in every]
        checkpoint["lmkit_task"] = {
            "state": None if states[0] is None else joined(states),
            "sums": [process["sums"] for process in every],
            **self.values.state_dict(),
            "validated": self.validated,
            "unseen": self._unseen,
            "stops": stops_by_itself(self.trainer),
        }

    def forget_validations(self) -> None:
        """Keep callbacks and schedules from using the values of earlier validations."""
        self.validated, self._unseen = {}, False

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        saved = checkpoint["lmkit_task"]
        rank, world_size = self.trainer.global_rank, self.trainer.world_size
        if saved["state"] is not None:
            self._readers["train"] = Reader(self.model)
            self._readers["train"].state = share_of(saved["state"], rank, world_size)
        sums = saved.get("sums") or [nll.view(1) for nll in saved["nll_sums"]]  # of older runs
        if len(sums) != world_size:  # the run resumes with another number of processes
            sums = [sum(sums), *[torch.zeros_like(sums[0])] * (world_size - 1)]
        self.values.load_state_dict(saved, sums[rank])
        self.validated = saved.get("validated", {})
        self._unseen = saved.get("unseen", False)
        self._stops = saved.get("stops", False)

    def on_fit_start(self) -> None:
        """Restore the values that callbacks and schedules watch: Lightning does not save them."""
        self.trainer.callback_metrics.update(_exact(self.validated))
        self.trainer.should_stop |= self._stops
        self._stops = False


def _exact(values: Mapping[str, float]) -> dict[str, Tensor]:
    """Values as float64 tensors, as Lightning would make numbers float32; on the CPU, as not all
    devices have float64."""
    return {key: torch.tensor(value, dtype=torch.float64) for key, value in values.items()}
