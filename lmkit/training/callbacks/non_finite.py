"""The callback that ends a training whose loss or gradient is not finite, and reports where."""

import shlex
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from lmkit.errors import ResultError
from lmkit.run import NON_FINITE
from lmkit.run.checkpoints import newest_manifest
from lmkit.system.files import strict_json, write_atomically
from lmkit.windows import Passes


class NonFiniteError(ResultError):
    """Training has diverged."""

    def __init__(self, message: str) -> None:
        super().__init__(message, None)


class StopOnNonFinite(Callback):
    """Raises NonFiniteError, on every process, when a loss or a gradient is NaN or infinite on any.

    On a CPU this happens before the update. An accelerator is not waited for at each step: the
    first bad window is noted on the device and checked every `log_every_n_steps` updates and
    before each checkpoint. No checkpoint is written after a bad loss, nor with a weight that is not
    finite.
    `non_finite.json` in the run directory names the documents of the window.

    action: stop the run, or skip the update, which is counted as `train/skipped`; a lane whose
    state is not finite then begins again from zero. This waits for the device at each step.
    """

    def __init__(self, *, action: Literal["stop", "skip"] = "stop") -> None:
        self.action = action
        self.skipped = 0
        self._first: Tensor | None = None  # int64 scalar: the first bad window of all epochs, or -1

    def state_dict(self) -> dict[str, Any]:
        return {"skipped": self.skipped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.skipped = state_dict["skipped"]

    def on_before_backward(
        self, trainer: Trainer, pl_module: LightningModule, loss: Tensor
    ) -> None:
        self._note(trainer, loss.detach())

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        norm = getattr(pl_module, "gradient_norm", None)
        if norm is not None and trainer.precision != "16-mixed":  # its loss scaler skips by itself
            self._note(trainer, norm())
        now = (trainer.global_step + 1) % trainer.log_every_n_steps == 0  # type: ignore[attr-defined]
        if self.action == "skip":
            if self._bad_window(trainer) >= 0:
                self._skip(trainer, pl_module)
        elif now or pl_module.device.type == "cpu":
            self._look(trainer)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._look(trainer)
        for name, parameter in pl_module.named_parameters():
            if not torch.isfinite(parameter).all():
                step = trainer.global_step
                _write_down(trainer, {"step": step, "parameter": name})
                raise NonFiniteError(
                    f"{name} is not finite after step {step}{_hint(trainer, step)}"
                )

    def _note(self, trainer: Trainer, value: Tensor) -> None:
        if self._first is None:
            self._first = torch.full((), -1, device=value.device)
        fresh = (self._first < 0) & ~torch.isfinite(value)
        self._first = torch.where(fresh, trainer.fit_loop.total_batch_idx, self._first)

    def _bad_window(self, trainer: Trainer) -> int:
        """The last of the first bad windows of all processes, or -1."""
        if self._first is None:
            return -1
        first = self._first
        if trainer.world_size > 1:
            first = trainer.strategy.reduce(first, reduce_op="max")
        return int(first)

    def _skip(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._first = None
        self.skipped += 1
        pl_module.drop_update()  # type: ignore[operator]
        row: dict[str, float] = {"train/skipped": self.skipped}
        for logger in trainer.loggers:
            logger.log_metrics(row, step=trainer.global_step)

    def _look(self, trainer: Trainer) -> None:
        if (window := self._bad_window(trainer)) < 0:
            return
        num_windows, together = int(trainer.num_training_batches), trainer.accumulate_grad_batches
        epoch, index = divmod(window, num_windows)
        step = epoch * -(-num_windows // together) + index // together + 1
        where = f"at step {step} (epoch {epoch}, window {index})"
        loader = trainer.train_dataloader
        if trainer.is_global_zero and isinstance(loader, Passes):
            names = loader.document_names(epoch, index)
            report = {"step": step, "epoch": epoch, "window": index, "documents": names}
            where += f"; {_write_down(trainer, report)} names its documents"
        hint = _hint(trainer, step - 1)
        raise NonFiniteError(f"the loss or its gradient is not finite {where}{hint}")


def _write_down(trainer: Trainer, report: dict[str, Any]) -> Path:
    path = Path(trainer.default_root_dir) / NON_FINITE
    if trainer.is_global_zero:
        write_atomically(path, strict_json(report, indent=1).encode())
    return path


def _hint(trainer: Trainer, first: int) -> str:
    """A remedy for the error message. A checkpoint of `first` or more updates does not help: its
    next update would be bad again, whatever the learning rate."""
    run = Path(trainer.default_root_dir)
    _, manifest = newest_manifest(run / "checkpoints")
    optimizer = trainer.optimizers[0]
    lr = optimizer.defaults.get("lr")
    unnamed = [group for group in optimizer.param_groups if "name" not in group]  # optimizer.lr's
    rate = unnamed[0].get("lr") if unnamed else None
    if lr and rate is not None and not 0 <= rate <= lr:
        return (
            f"; the schedule had made a learning rate of {float(rate):g} of optimizer.lr="
            f"{float(lr):g}: begin another run with other values of scheduler"
        )
    if not manifest or not lr or manifest["step"] >= first:
        return "; begin another run with a lower optimizer.lr or a trainer.gradient_clip_val"
    return (
        f"; the last checkpoint is from before that: go on from it with lmkit resume "
        f"{shlex.quote(str(run))} optimizer.lr={lr / 10:g}, or with a trainer.gradient_clip_val"
    )
