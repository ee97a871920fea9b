"""What a run writes down while it trains: the rows of its metrics, and samples of its text."""

import logging
import os
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.seed import isolate_rng

from lmkit.ranges import Seed, Size
from lmkit.run import strict_json
from lmkit.system.atomic import naming
from lmkit.system.regular_file import MAX_ROW, opened, parse_row
from lmkit.wandb_logger import WandbLogger as WandbLogger  # the configs of runs name it here

log = logging.getLogger(__name__)

Generate = Callable[[LightningModule, str, int, int], str]


class JsonLines:
    """Appends objects to a file, one a line; what lies beyond `length` is cut off before.

    `length` in bytes starts at 0: whoever goes on with a file says where, with `go_on`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.length = 0

    def go_on(self, length: int) -> None:
        """Go on at `length`, as a checkpoint says; after the last whole row before, with a warning,
        where the file is not what it was then."""
        data = b""
        with suppress(FileNotFoundError), self.path.open("rb") as file:
            data = file.read(length)
        self.length = data.rfind(b"\n") + 1
        if self.length == length or rank_zero_only.rank:  # type: ignore[attr-defined]
            return
        log.warning(
            "%s is damaged: %d of its %d bytes are there in whole rows; the others are lost, and "
            "it goes on after these",
            *(self.path, self.length, length),
        )
        if data:
            os.truncate(self.path, self.length)

    def append(self, row: Mapping[str, Any]) -> None:
        line = strict_json(row).encode() + b"\n"
        with naming(self.path), self.path.open("ab") as file:
            self.length = min(self.length, file.tell())
            file.truncate(self.length)
            file.write(line)
        self.length += len(line)

    def rows(self) -> Iterator[dict[str, Any]]:
        """The objects up to `length`; what is damaged is left out, with a warning."""
        if not self.length:
            return
        num_damaged = 0
        with opened(self.path) as file:
            while file.tell() < self.length and (line := file.readline(MAX_ROW)):
                row = parse_row(line)
                if row is None:
                    num_damaged += 1
                else:
                    yield row
        if num_damaged:
            log.warning("%s: %d damaged lines are left out", self.path, num_damaged)

    def sync(self) -> None:
        """Have on disk what a checkpoint is about to rely on."""
        if self.length:
            with self.path.open("rb") as file:
                os.fsync(file.fileno())


class JsonlLogger(Logger):
    """Writes `metrics.jsonl`: rows of step, epoch, tokens, seconds and the values logged then.

    step: updates done; tokens: training targets seen; seconds: spent in training, those before
    a resume included. Values that are not finite become null.
    """

    def __init__(self, save_dir: str | Path, version: str = "") -> None:
        super().__init__()
        self._save_dir = str(save_dir)
        self._version = version
        self._lines = JsonLines(Path(save_dir) / "metrics.jsonl")
        self._trainer: Trainer | None = None
        self._seconds = 0.0
        self._started = time.perf_counter()
        self._last: tuple[Mapping[str, Any], dict[str, Any]] | None = None

    @property
    def name(self) -> str:
        return "jsonl"

    @property
    def version(self) -> str:
        return self._version

    @property
    def save_dir(self) -> str:
        return self._save_dir

    def follow(self, trainer: Trainer) -> None:
        """Take step, epoch and tokens from `trainer`, about to fit, and start the clock."""
        self._trainer = trainer
        self._started = time.perf_counter()

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        self._lines.append(self.row(metrics, step))

    def row(self, metrics: Mapping[str, Any], step: int | None = None) -> dict[str, Any]:
        """The row of these metrics; the same one for every logger that gets the same mapping."""
        if self._last is None or self._last[0] is not metrics:
            row: dict[str, Any] = {"step": step, "epoch": None, "tokens": None}
            if self._trainer is not None:
                # Lightning's own `step` counts from 0 and differs from stage to stage.
                row = position(self._trainer)
            row["seconds"] = round(self.seconds, 3)
            self._last = metrics, row | {key: metrics[key] for key in metrics if key != "epoch"}
        return self._last[1]

    def rows(self) -> Iterator[dict[str, Any]]:
        """What is written so far, of a resumed run that up to its checkpoint."""
        return self._lines.rows()

    @property
    def seconds(self) -> float:
        """Wall time in training so far."""
        return self._seconds + time.perf_counter() - self._started

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *_: Any, **__: Any) -> None:
        """Nothing: config.yaml has them."""

    def state_dict(self) -> dict[str, Any]:
        self._lines.sync()
        return {"length": self._lines.length, "seconds": self.seconds}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        self._lines.go_on(state_dict["length"])
        self._seconds = state_dict["seconds"]
        self._started = time.perf_counter()


def position(trainer: Trainer) -> dict[str, Any]:
    """Updates done, epoch from 0, training tokens seen."""
    return {
        "step": trainer.global_step,
        "epoch": trainer.current_epoch,
        "tokens": getattr(trainer.lightning_module, "tokens_seen", None),
    }


class Samples(Callback):
    """Continues a prompt after every validation and writes `samples.jsonl`.

    `generate(task, prompt, num_tokens, seed) -> text`; training's random numbers are left alone.
    """

    def __init__(
        self, generate: Generate, path: Path, prompt: str, num_tokens: Size, seed: Seed
    ) -> None:
        """prompt: the text to continue. num_tokens: of the continuation, at most.
        seed: of its random draws; the same every time."""
        self.generate = generate
        self.prompt = prompt
        self.num_tokens = num_tokens
        self.seed = seed
        self.followers: list[Callable[[Mapping[str, Any]], None]] = []
        self._lines = JsonLines(path)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking or not trainer.is_global_zero:
            return
        with isolate_rng():
            text = self.generate(pl_module, self.prompt, self.num_tokens, self.seed)
        row = position(trainer)
        del row["tokens"]
        row |= {"prompt": self.prompt, "text": text}
        self._lines.append(row)
        for follower in self.followers:
            follower(row)

    def rows(self) -> Iterator[dict[str, Any]]:
        """What is written so far, of a resumed run that up to its checkpoint."""
        return self._lines.rows()

    def state_dict(self) -> dict[str, Any]:
        self._lines.sync()
        return {"length": self._lines.length}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._lines.go_on(state_dict["length"])
