"""The LightningModule: computes losses of windows and carries the state between them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch
from lightning.pytorch.accelerators import MPSAccelerator
from lightning.pytorch.utilities.enums import GradClipAlgorithmType
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from lmkit.errors import UserError
from lmkit.head import Head
from lmkit.metrics import TokenNLL, bits_per_byte, perplexity
from lmkit.model import LanguageModel, Reader, States, detached, finite, joined, share_of
from lmkit.model.dropout import Masks
from lmkit.optim import Stepping, global_norm, is_plain_sgd, learning_rates
from lmkit.regularizers import Regularizer
from lmkit.system.rendezvous import gather
from lmkit.training.cuda_graphs import Function, Graph, capturable, gradients
from lmkit.training.fit_loop import is_within_update, restore_loaders, stops_by_itself
from lmkit.windows import Window

MakeOptimizer = Callable[[Iterable[nn.Parameter]], Optimizer]
MakeScheduler = Callable[[Optimizer, float], LRScheduler | None]


class _Step(NamedTuple):
    """What a training step makes of a window; a graph makes the gradients too."""

    loss: Tensor
    sums: Tensor  # that are logged
    state: States  # detached
    gradients: list[Tensor | None] | None = None  # of the parameters that are trained


class Task(pl.LightningModule):
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
        super().__init__()
        self.seed = seed
        self.model = model
        self.head = head
        self.make_optimizer = make_optimizer
        self.make_scheduler = make_scheduler
        self.stepping = stepping
        self.regularizers = regularizers or {}
        self.num_bytes = num_bytes or {}
        self.validated: dict[str, float] = {}  # values of the newest validation
        self.tokens_seen = 0
        self.seconds = 0.0  # spent on them
        self.val_sums = TokenNLL()
        self.test_sums = TokenNLL()
        self._readers: dict[str, Reader] = {}  # by stage
        # Since training values were last logged: this process's sums, all processes' targets.
        terms = ("loss", *self.regularizers) if self.regularizers else ()
        self._summed = (head.measure, *terms)
        self._sums = torch.zeros(len(self._summed), dtype=torch.float64)
        self._num_targets = 0
        self._sums_before = (self._sums, self._num_targets)  # this update
        self._seconds_logged = 0.0
        self._grad_norm: Tensor | None = None  # before clipping, of the last update
        self._graphs: dict[str, Graph[Any] | None] = {}  # by stage
        self._gradients: list[Tensor | None] | None = None  # if they are made with the loss
        self._started = 0.0
        self._rate = 1.0  # factor of the learning rate of the update that is being made
        self._unseen = False  # by a schedule: the newest validation
        self._stops = False  # after the update that is being made

    def setup(self, stage: str) -> None:
        if isinstance(self.trainer.accelerator, MPSAccelerator):  # it has no float64
            self._sums = self._sums.float()
            self.val_sums = TokenNLL(torch.float32)
            self.test_sums = TokenNLL(torch.float32)

    def reader(self, stage: str, window: Window) -> Reader:
        """What reads a stage, before this window of it."""
        if window.index == 0:
            self._readers[stage] = Reader(self.model)
        return self._readers[stage]

    def training_step(self, window: Window, batch_idx: int) -> Tensor:
        reader = self.reader("train", window)
        state = reader.before(window.tokens)
        place = (window.epoch, window.index, window.first_lane, window.num_lanes)
        masks = Masks(self.seed, *place)
        graph = self._graph("train", self._with_gradients)
        step: _Step | None = None
        if graph and self.trainer.accumulate_grad_batches == 1:
            step = graph(window, state, masks)
        if step is None:
            with masks.use():
                step = self._forward(window, state)
        loss = step.loss if step.gradients is None else step.loss.clone()  # it is kept
        self._gradients = step.gradients
        reader.state = step.state
        self._sums = self._sums.to(loss.device) + step.sums
        self._num_targets += window.num_targets
        self._rate = window.rate
        self.tokens_seen += window.num_targets
        return loss

    def _graph(self, stage: str, function: Function[Any]) -> Graph[Any] | None:
        """The captured function of a stage, if there can be one."""
        if stage not in self._graphs:
            parts = [*self.model.modules(), *self.head.modules(), *self.regularizers.values()]
            may = capturable(self, parts)
            self._graphs[stage] = Graph(function, self.head, parts) if may else None
        return self._graphs[stage]

    def _with_gradients(self, window: Window, state: States) -> _Step:
        """Both passes."""
        step = self._forward(window, state)
        made = gradients(step.loss, self._trained())
        return step._replace(loss=step.loss.detach(), gradients=made)

    def _forward(self, window: Window, state: States) -> _Step:
        output = self.model(window.tokens, window.resets, state)
        output = output._replace(state=detached(output.state))
        loss, sums = self.head.loss(output.hidden, window.targets, window.weight)
        if self.regularizers:
            weight = window.weight
            terms = [
                _term(name, one.term(output, window.mask), weight)
                for name, one in self.regularizers.items()
            ]
            loss = loss + sum((term * weight).sum() for term in terms)
            sums = _sums(loss, sums, terms, window)
        return _Step(loss, sums, output.state)

    def _trained(self) -> list[nn.Parameter]:
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        if self._gradients is None:
            super().backward(loss, *args, **kwargs)
            return
        for parameter, gradient in zip(self._trained(), self._gradients, strict=True):
            parameter.grad = gradient

    def on_train_start(self) -> None:
        restore_loaders(self.trainer)

    def on_train_batch_start(self, batch: Window, batch_idx: int) -> None:
        self._started = self._started or time.perf_counter()
        if batch_idx % self.trainer.accumulate_grad_batches == 0:
            self._sums_before = (self._sums, self._num_targets)

    def on_train_batch_end(self, outputs: Any, batch: Window, batch_idx: int) -> None:
        now = time.perf_counter()
        self.seconds += now - self._started
        self._started = now
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
        if now and self._num_targets:  # with bptt=1 a window may have reset positions alone
            values = self._values(trainer.strategy.reduce(self._sums, reduce_op="sum"))
            if self._grad_norm is not None:
                values["train/grad_norm"] = float(self._grad_norm)
            for logger in trainer.loggers:
                logger.log_metrics(values, step=trainer.global_step)
            self._sums = torch.zeros_like(self._sums)
            self._num_targets = 0
            self._seconds_logged = self.seconds

    def running(self) -> dict[str, float]:
        """Training values since the last logging, as this process sees them; waits for the
        device, so not for every step."""
        if not self._num_targets:
            return {}
        return self._values(self._sums * self.trainer.world_size)

    def _values(self, sums: Tensor) -> dict[str, float]:
        means = [value / self._num_targets for value in sums.tolist()]
        running = time.perf_counter() - self._started if self._started else 0.0
        seconds = self.seconds - self._seconds_logged + running
        of_nll = {"train/perplexity": perplexity(means[0])} if self.head.measure == "nll" else {}
        return {
            **{f"train/{name}": mean for name, mean in zip(self._summed, means, strict=True)},
            **of_nll,
            "train/tokens_per_second": self._num_targets / max(seconds, 1e-9),
            **learning_rates(self.trainer.optimizers[0]),
        }

    def on_validation_start(self) -> None:
        self._started = 0.0  # training's clock stands still

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
        graph = self._graph(stage, self._scored)
        scored = graph(window, state, None) if graph else None
        nll, reader.state = scored or self._scored(window, state)
        sums.update(nll, window.mask)

    def _scored(self, window: Window, state: States) -> tuple[Tensor, States]:
        """The nll of each position and the state after the last."""
        output = self.model(window.tokens, window.resets, state)
        return self.head.nll(output.hidden, window.targets), detached(output.state)

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
            _scale_rates(self.trainer.optimizers[0], self._rate)

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
            return
        norm = self.gradient_norm()
        if self.device.type != "cpu":  # which is not waited for
            nn.utils.clip_grads_with_norm_(parameters, gradient_clip_val, norm)
        elif (share := gradient_clip_val / (float(norm) + 1e-6)) < 1:
            if is_plain_sgd(optimizer):  # a shorter step is the same, without a pass over all
                _scale_rates(optimizer, share)
                return
            for parameter in parameters:
                if parameter.grad is not None:
                    parameter.grad.mul_(share)

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
        self._sums, self._num_targets = self._sums_before
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
        own = {"state": reader and reader.state, "sums": self._sums}
        every = gather(own)
        states = [process["state"] for process in every]
        checkpoint["lmkit_task"] = {
            "state": None if states[0] is None else joined(states),
            "sums": [process["sums"] for process in every],
            "tokens_seen": self.tokens_seen,
            "seconds": self.seconds,
            "seconds_logged": self._seconds_logged,
            "num_targets": self._num_targets,
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
        self._sums = sums[rank]
        self.tokens_seen = saved["tokens_seen"]
        self.seconds = saved["seconds"]
        self._seconds_logged = saved["seconds_logged"]
        self._num_targets = saved["num_targets"]
        self.validated = saved.get("validated", {})
        self._unseen = saved.get("unseen", False)
        self._stops = saved.get("stops", False)

    def on_fit_start(self) -> None:
        """Restore the values that callbacks and schedules watch: Lightning does not save them."""
        self.trainer.callback_metrics.update(_exact(self.validated))
        self.trainer.should_stop |= self._stops
        self._stops = False


def _term(name: str, term: Any, weight: Tensor) -> Tensor:
    """A regularizer's values at all positions, as `weight` has them; a scalar is that of each."""
    if isinstance(term, Tensor) and term.shape in (weight.shape, ()):
        return term.expand_as(weight)
    found = tuple(term.shape) if isinstance(term, Tensor) else f"a {type(term).__name__}"
    raise UserError(
        f"regularizers.{name}: its term is {found}, expected a tensor (lanes, time) = "
        f"{tuple(weight.shape)}, or a scalar"
    )


def _sums(loss: Tensor, nll: Tensor, terms: Sequence[Tensor], window: Window) -> Tensor:
    """The sums over a window's targets of the nll, the whole loss and each term."""
    num_targets, weight = window.mask.sum(), window.weight.sum()
    # The loss is weighted already; a window without targets has a weight of 0.
    whole = torch.where(num_targets > 0, loss.detach() * num_targets / weight, 0)
    return torch.stack([nll, whole, *((term.detach() * window.mask).sum() for term in terms)])


def _exact(values: Mapping[str, float]) -> dict[str, Tensor]:
    """Values as float64 tensors, as Lightning would make numbers float32; on the CPU, as not all
    devices have float64."""
    return {key: torch.tensor(value, dtype=torch.float64) for key, value in values.items()}


def _scale_rates(optimizer: Optimizer, factor: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] *= factor
