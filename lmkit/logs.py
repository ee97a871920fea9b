"""What a run writes down while it trains: metrics, samples, and wandb's copy of them."""

import logging
import netrc
import os
import time
from argparse import Namespace
from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.loggers import WandbLogger as LightningWandbLogger
from lightning.pytorch.loggers.logger import rank_zero_experiment  # type: ignore[attr-defined]
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.seed import isolate_rng

from lmkit.run import strict_json

log = logging.getLogger(__name__)

NETWORK_SECONDS = 15.0  # that wandb may take to start, and to end

Generate = Callable[[LightningModule, str, int, int], str]


class JsonLines:
    """Appends objects to a file, one a line; what lies beyond `length` is cut off before.

    `length` in bytes starts at 0: whoever goes on with a file sets it to what a checkpoint says.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.length = 0

    def append(self, row: Mapping[str, Any]) -> None:
        line = strict_json(row).encode() + b"\n"
        with self.path.open("ab") as file:
            self.length = min(self.length, file.tell())
            file.truncate(self.length)
            file.write(line)
        self.length += len(line)

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
        row: dict[str, Any] = {"step": step, "epoch": None, "tokens": None}
        if self._trainer is not None:
            # Lightning's own `step` counts from 0 and differs from stage to stage.
            row = position(self._trainer)
        row["seconds"] = round(self.seconds, 3)
        self._lines.append(row | {key: metrics[key] for key in metrics if key != "epoch"})

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
        self._lines.length = state_dict["length"]
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
        self, generate: Generate, path: Path, prompt: str, num_tokens: int, seed: int
    ) -> None:
        """prompt: the text to continue. num_tokens: of the continuation, at most.
        seed: of its random draws; the same every time."""
        self.generate = generate
        self.prompt = prompt
        self.num_tokens = num_tokens
        self.seed = seed
        self._lines = JsonLines(path)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking or not trainer.is_global_zero:
            return
        with isolate_rng():
            text = self.generate(pl_module, self.prompt, self.num_tokens, self.seed)
        row = position(trainer)
        self._lines.append(
            {"step": row["step"], "epoch": row["epoch"], "prompt": self.prompt, "text": text}
        )

    def state_dict(self) -> dict[str, Any]:
        self._lines.sync()
        return {"length": self._lines.length}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._lines.length = state_dict["length"]


def tolerate(logger: Logger) -> None:
    """Have the mistakes of a logger cost a warning and what it would still have shown, never the
    run."""
    failed = False

    def tolerating(method: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(method)
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal failed
            if failed:
                return None
            try:
                return method(*args, **kwargs)
            except Exception as error:  # whatever a service or its library leads to
                failed = True
                what = f"{type(logger).__name__} failed ({type(error).__name__}: {error})"
                log.warning("%s: it gets no more; metrics.jsonl goes on", what)
                return None

        return call

    for name in ("log_metrics", "log_hyperparams", "log_graph", "save", "finalize"):
        setattr(logger, name, tolerating(getattr(logger, name)))


class WandbLogger(LightningWandbLogger):
    """The same rows in wandb, offline inside the run directory.

    A network that fails, at the start or later, costs a warning and at most half a minute, never
    the run.

    mode: offline or online, which sends the rows where somebody is logged in.
    entity: the user or team that the project belongs to. group: puts runs together in wandb.
    tags: words to find the run by.
    """

    def __init__(
        self,
        project: str = "lmkit",
        mode: str = "offline",
        entity: str | None = None,
        group: str | None = None,
        tags: list[str] | None = None,
        *,
        save_dir: str | Path,
        version: str,
    ) -> None:
        import wandb

        if mode == "online" and not logged_in():
            log.warning("logger mode=online, but nobody is logged in to wandb: staying offline")
            mode = "offline"
        super().__init__(
            name=version,
            save_dir=save_dir,
            version=version,
            project=project,
            entity=entity,
            group=group,
            tags=tags,
            mode=mode,
            settings=wandb.Settings(silent=True, console="off", init_timeout=15, finish_timeout=15),
        )
        del self._wandb_init["anonymous"]  # Lightning passes it, wandb warns of it
        self._trainer: Trainer | None = None

    @staticmethod
    def check(**config: Any) -> list[str]:
        """Modes that there are not."""
        mode = config["mode"]
        return [] if mode in ("offline", "online") else [f"mode={mode}: expected offline or online"]

    def follow(self, trainer: Trainer) -> None:
        """Take the step from `trainer`, as metrics.jsonl does."""
        self._trainer = trainer

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        import wandb

        try:
            return super().experiment
        except Exception as error:  # wandb's own, and whatever its network layer raises
            if self._wandb_init["mode"] == "offline":
                raise
            log.warning("wandb cannot be reached (%s): staying offline", error)
            wandb.teardown()  # its service still holds the run's id
            self._wandb_init["mode"] = "offline"
            return super().experiment

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        row = position(self._trainer) if self._trainer is not None else {"step": step}
        values = {key: metrics[key] for key in metrics if key != "epoch"}
        super().log_metrics(values | {k: row[k] for k in row if k != "step"}, row["step"])

    @rank_zero_only
    def close(self) -> None:
        """Finish the wandb run, or a later run in this process would be merged into it."""
        if self._experiment is not None:
            self._experiment.finish()
            self._experiment = None


def logged_in() -> bool:
    """Whether a wandb key is at hand, in the environment or in netrc."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
