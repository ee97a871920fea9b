"""The callback that shows a run on stderr: first the model's size, then the progress."""

import math
import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bar
from rich.table import Table
from torch import nn

from lmkit.system.progress import LINE_SECONDS, time_left
from lmkit.training.fit_loop import is_fitting

BAR_SECONDS = 0.5  # reading the running loss waits for the device: at most this often
WARM_UP = 3  # steps that may compile, and fill caches
ENOUGH = 5.0  # seconds of further steps that are needed for an estimate


class TimeLeft:
    """Estimates how long the rest of a training takes, from the steps of this process so far and
    from the pauses between them for validations, samples and checkpoints."""

    def __init__(self, step: int, now: float) -> None:
        self._from = step + WARM_UP
        self._step = step
        self._last = now
        self._steps = 0
        self._seconds = 0.0
        self._pauses = 0
        self._paused = 0.0
        self._pausing = False

    @property
    def ready(self) -> bool:
        """Whether there have been enough steps for an estimate."""
        return self._seconds >= ENOUGH

    def step(self, step: int, now: float) -> None:
        """Note that `step` updates are done."""
        if self._step >= self._from:
            self._steps += step - self._step
            self._seconds += now - self._last
        self._step, self._last = step, now

    def pause(self) -> None:
        self._pausing = True

    def resume(self, now: float) -> None:
        """Note that the next step begins, after a pause or without one."""
        if self._pausing:
            self._pausing = False
            self._pauses += 1
            self._paused += now - self._last
            self._last = now

    def left(self, steps: float, pauses: float) -> float | None:
        """Seconds that so many more steps and pauses will take; None while unknown."""
        if not self.ready or not self._steps or math.isinf(steps):
            return None
        pause = self._paused / self._pauses if self._pauses else 0.0
        return steps * self._seconds / self._steps + pauses * pause


class Progress(Callback):
    """Shows epoch, loss, perplexity, tokens per second and time left.

    On a terminal this is a bar over all training steps; elsewhere a plain line after each
    validation and every ten seconds.
    """

    def __init__(self) -> None:
        self.console = Console(stderr=True)
        self._bar: Bar | None = None
        self._total = math.inf  # updates of the whole run
        self._shown = 0.0
        self._time = TimeLeft(0, 0.0)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            self.console.print(summary(pl_module))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._total = trainer.estimated_stepping_batches
        self._shown = time.monotonic()
        self._time = TimeLeft(trainer.global_step, self._shown)
        if self.console.is_terminal and trainer.is_global_zero:
            self._bar = Bar(
                TextColumn("{task.description}"),
                BarColumn(bar_width=None),
                MofNCompleteColumn(),
                TextColumn("{task.fields[values]}"),
                TextColumn("{task.fields[left]}"),  # rich's own counts steps before a resume too
                console=self.console,
                auto_refresh=False,
            )
            total = None if math.isinf(self._total) else self._total
            self._bar.add_task(
                self._epoch(trainer), total=total, completed=trainer.global_step, values="", left=""
            )
            self._bar.start()

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._time.resume(time.monotonic())

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        if not trainer.is_global_zero:
            return
        now = time.monotonic()
        self._time.step(trainer.global_step, now)
        if now - self._shown < (BAR_SECONDS if self._bar else LINE_SECONDS):
            return
        self._shown = now
        running = pl_module.running()  # type: ignore[operator]
        if not self._time.ready:
            running.pop("train/tokens_per_second", None)
        values = describe(running, "train/")
        if self._bar:
            self._update(trainer, values)
        else:
            self._line(trainer, values, self._left(trainer))

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._time.pause()
        if self._bar:
            self._update(trainer, "validating")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if is_fitting(trainer) and trainer.is_global_zero:
            values = {key: float(value) for key, value in trainer.callback_metrics.items()}
            self._line(trainer, "validation", describe(values, "val/"))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._close(trainer)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self._close(trainer)

    def _close(self, trainer: Trainer) -> None:
        if self._bar:
            self._update(trainer, "")
            self._bar.stop()
            self._bar = None

    def _update(self, trainer: Trainer, values: str) -> None:
        assert self._bar is not None
        self._bar.update(
            self._bar.task_ids[0],
            completed=trainer.global_step,
            description=self._epoch(trainer),
            values=values,
            left=self._left(trainer),
            refresh=True,
        )

    def _line(self, trainer: Trainer, *parts: str) -> None:
        total = "" if math.isinf(self._total) else f"/{self._total:.0f}"
        words = (self._epoch(trainer), f"step {trainer.global_step}{total}", *parts)
        self.console.print("  ".join(filter(None, words)), highlight=False, soft_wrap=True)

    def _left(self, trainer: Trainer) -> str:
        steps = self._total - trainer.global_step
        epoch = trainer.num_training_batches / trainer.accumulate_grad_batches
        seconds = self._time.left(steps, steps // max(epoch, 1))
        return "" if seconds is None else time_left(seconds)

    def _epoch(self, trainer: Trainer) -> str:
        last = trainer.max_epochs if (trainer.max_epochs or -1) > 0 else None
        return f"epoch {trainer.current_epoch + 1}" + (f"/{last}" if last else "")


def describe(values: dict[str, float], stage: str) -> str:
    """The values of `stage` as a text, `loss 5.123  perplexity 167.8  2,400 tokens/s`; loss and nll
    are both shown if the loss has other terms too."""
    forms = {
        "loss": "loss {:.3f}",
        "nll": "nll {:.3f}" if f"{stage}loss" in values else "loss {:.3f}",
        "sampled_nll": "sampled nll {:.3f}",
        "perplexity": "perplexity {:,.2f}",
        "bits_per_byte": "{:.3f} bits/byte",
        "tokens_per_second": "{:,.0f} tokens/s",
    }
    shown = [form.format(values[stage + k]) for k, form in forms.items() if stage + k in values]
    return "  ".join(shown)


def summary(module: nn.Module) -> Table:
    """A table of modules and their parameters; a shared one counts where it comes first."""
    table = Table("module", "class", "parameters", title_justify="left", box=None)
    table.columns[2].justify = "right"
    seen: set[int] = set()
    total = 0
    for name, submodule in module.named_modules():
        own = list(submodule.parameters(recurse=False))
        if not own:
            continue
        count = sum(p.numel() for p in own if id(p) not in seen)
        shared = any(id(p) in seen for p in own)
        seen.update(map(id, own))
        total += count
        table.add_row(
            name, type(submodule).__name__, f"{count:,}" + (" + shared" if shared else "")
        )
    table.add_row("total", "", f"{total:,}")
    return table
