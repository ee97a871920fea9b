"""`lmkit` with faults: run as `python injected.py train ...` with FAULTS set by `fail_at`.

The processes of a run are spawned from this main module, so that each of them reads it.
"""

import datetime
import errno
import json
import math
import os
import signal
import sys
import time
from pathlib import Path

import torch
from lightning.pytorch.loggers import WandbLogger as LightningWandbLogger

from lmkit.run import checkpoints, history
from lmkit.training.callbacks import checkpoint
from lmkit.training.task import Task

FAULTS = "LMKIT_TEST_FAULTS"


def fail_at(rank: int, step: int, fault: str, once: Path) -> dict[str, str]:
    """Environment in which `rank` does `fault` as it begins the step after `step` updates, the
    first time that any process comes there; `once` is a file that does not exist yet."""
    return {FAULTS: json.dumps({"rank": rank, "step": step, "fault": fault, "once": str(once)})}


def _full_disk(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def _kill(*_: object, **__: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _raise(*_: object, **__: object) -> None:
    raise ValueError("an injected mistake")


def _slow_link(name: Path, target: Path) -> None:
    time.sleep(1)
    checkpoints.link(name, target)


def _clock_back() -> None:
    """From now on it is yesterday."""
    real, now = time.time, datetime.datetime

    class Yesterday(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return now.now(tz) - datetime.timedelta(days=1)

    time.time = lambda: real() - 86_400
    history.datetime = Yesterday


ACTIONS = {
    "clock back": _clock_back,
    "logger": lambda: setattr(LightningWandbLogger, "log_metrics", _raise),
    "kill": _kill,
    "raise": _raise,
    "terminate": lambda: os.kill(os.getpid(), signal.SIGTERM),
    "hang": lambda: time.sleep(10_000),
    "slow link": lambda: setattr(checkpoint, "link", _slow_link),
    "full disk": lambda: setattr(torch, "save", _full_disk),
    "kill in write": lambda: setattr(checkpoints.os, "fsync", _kill),
    "kill before manifest": lambda: setattr(checkpoints, "write_atomically", _kill),
}


def _inject(fault: dict) -> None:
    if fault["fault"] == "slow link" and os.environ.get("RANK") != str(fault["rank"]):
        read = checkpoints._check_archive
        checkpoints._check_archive = lambda path: (time.sleep(3), read(path))
    begin, step = Task.on_train_batch_start, Task.training_step

    def due(task: Task) -> bool:
        saves = any(isinstance(each, checkpoint.Checkpoint) for each in task.trainer.callbacks)
        if not saves:  # the trial steps before a run are none of its steps
            return False
        here = (task.global_rank, task.trainer.global_step)
        if here != (fault["rank"], fault["step"]) or Path(fault["once"]).exists():
            return False
        Path(fault["once"]).touch()
        return True

    def on_train_batch_start(self: Task, batch: object, batch_idx: int) -> None:
        if fault["fault"] in ACTIONS and due(self):
            ACTIONS[fault["fault"]]()
        begin(self, batch, batch_idx)

    def training_step(self: Task, window: object, batch_idx: int) -> torch.Tensor:
        loss = step(self, window, batch_idx)
        return loss * math.nan if fault["fault"] == "nan" and due(self) else loss

    Task.on_train_batch_start = on_train_batch_start
    Task.training_step = training_step


if FAULTS in os.environ:
    _inject(json.loads(os.environ[FAULTS]))

if __name__ == "__main__":
    from lmkit.cli import main

    sys.exit(main())
