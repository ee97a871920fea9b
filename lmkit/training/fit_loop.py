"""The private counters of Lightning's loops, all in one file to compare with each new version."""

from dataclasses import dataclass
from typing import Any

from lightning.pytorch import Trainer


@dataclass
class Position:
    """How far training is: `epoch` counts from 0, `windows` are those of it that are done."""

    epoch: int
    windows: int
    ended: bool  # the last window of the epoch is done
    loaders: list[dict[str, Any]]  # states of the training loaders, each with `ended`


def current_position(trainer: Trainer, last: Position) -> Position:
    """The position from which the next step begins; `loaders` is known only from `last`."""
    if trainer.validating:
        return last
    batches = trainer.fit_loop.epoch_loop.batch_progress.current
    if batches.ready > batches.completed:  # the next batch has been fetched
        return Position(trainer.current_epoch, batches.completed, False, last.loaders)
    return last


def rewind(loop: dict[str, Any], now: Position, *, validate: bool) -> None:
    """Set the saved loop counters to `now`; `validate` if the step's validation is still to come.

    Lightning compares `ready`, `started`, `processed` and `completed` to find where it was.
    """
    begun = not now.ended or validate  # whether Lightning is to be inside the epoch
    done = now.epoch + (not begun)
    epochs = {"ready": done + 1, "started": done + begun, "processed": done, "completed": done}
    loop["epoch_progress"] = {"total": dict(epochs), "current": dict(epochs)}
    windows = now.windows if begun else 0
    batches = loop["epoch_loop.batch_progress"]
    total = batches["total"]["processed"]
    for counts, number in ((batches["total"], total), (batches["current"], windows)):
        counts.update(dict.fromkeys(("ready", "started", "processed", "completed"), number))
    batches["is_last_batch"] = now.ended and validate
    if validate:
        whole = loop["epoch_loop.val_loop.batch_progress"]
        whole["total"] = {"ready": 1, "started": 1, "processed": 0, "completed": 0}
        whole["current"] = dict.fromkeys(whole["total"], 0)
        whole["is_last_batch"] = False
    if now.loaders:
        loop["state_dict"]["combined_loader"] = now.loaders
