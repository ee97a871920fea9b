"""The private counters of Lightning's loops, all in one file to compare with each new version."""

from dataclasses import dataclass
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.trainer.states import TrainerFn


@dataclass
class Position:
    """How far training is: `epoch` counts from 0, `windows` are those of it that are done."""

    epoch: int
    windows: int
    ended: bool  # the last window of the epoch is done
    loaders: list[dict[str, Any]]  # states of the training loaders, each with `ended`


def is_fitting(trainer: Trainer) -> bool:
    """Whether what runs belongs to a training, its validations included but for the trial one."""
    return trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking


def is_within_update(trainer: Trainer) -> bool:
    """Whether the update of the last window is still to come: gradients are being accumulated."""
    within: bool = trainer.fit_loop._should_accumulate()
    return within


def stops_by_itself(trainer: Trainer) -> bool:
    """Whether a callback has asked for an end that min_epochs or min_steps still put off."""
    return trainer.should_stop and not trainer.fit_loop._can_stop_early


def loader_states(trainer: Trainer) -> list[dict[str, Any]]:
    """Where the training loaders stand, as plain values."""
    loaders = trainer.fit_loop._combined_loader
    return loaders._state_dicts() if loaders else []


def forget_restart(trainer: Trainer) -> None:
    """Let the rest of the epoch be as if nothing had been resumed.

    Lightning keeps the flag to the end of the epoch and would leave out ReduceLROnPlateau there;
    and the counter that it logs by runs one ahead when it passes over a validation.
    """
    trainer.fit_loop._restarting = False
    if not trainer.validating:
        trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step


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
