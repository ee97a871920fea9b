"""All that is private of Lightning's loops, to be held against a new version of it in one place."""

from dataclasses import dataclass
from typing import Any

from lightning.pytorch import Trainer


@dataclass
class Position:
    """Where training stands: `epoch` counts from 0, `windows` are those done of it."""

    epoch: int
    windows: int
    ended: bool  # the last window of the epoch is done
    loaders: list[dict[str, Any]]  # states of the training loaders, each with `ended`


def current_position(trainer: Trainer, last: Position) -> Position:
    """The position that the next step begins from; only `loaders` is known to `last` alone."""
    if trainer.validating:
        return last
    batches = trainer.fit_loop.epoch_loop.batch_progress.current
    if batches.ready > batches.completed:  # the next batch has been fetched
        return Position(trainer.current_epoch, batches.completed, False, last.loaders)
    return last


def rewind(loop: dict[str, Any], now: Position, *, validate: bool) -> None:
    """Set the saved loop counters to `now`; `validate` if the step's validation is to be done.

    Lightning tells by comparing `ready`, `started`, `processed` and `completed` where it was.
    """
    begun = not now.ended or validate  # of the epoch that comes next
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


def restore_loaders(trainer: Trainer) -> None:
    """Give the training loaders the state that a checkpoint has for them.

    Lightning leaves it out where `estimated_stepping_batches` has made the loaders before there was
    a state to load, and where a checkpoint was written at the end of an epoch.
    """
    loop = trainer.fit_loop
    if loop._combined_loader_states_to_load and loop._combined_loader is not None:
        loop._combined_loader._load_state_dicts(loop._combined_loader_states_to_load)
        loop._combined_loader_states_to_load = []
        iter(loop._data_fetcher)  # type: ignore[arg-type]
