"""Tiny trainings in this process, for tests of what a key of the trainer does to them."""

import json
import random
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch

from lmkit.assembly import make_data
from lmkit.config.check import check
from lmkit.config.compose import compose
from lmkit.run import Run
from lmkit.run.checkpoints import latest_checkpoint
from lmkit.training.fit import work
from lmkit.training.limits import in_windows
from lmkit.training.task import Task
from lmkit.training.workers import work_in_processes

CLOCK = ("seconds", "train/tokens_per_second")


class KilledError(Exception):
    """Stands for the end of a process: nothing of the run is written after it."""


class Fitted:
    """What a run directory holds after a training by `argv`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        lines = (path / "metrics.jsonl").read_text().splitlines()
        every = [json.loads(line) for line in lines]
        self.rows = [{k: row[k] for k in row if k not in CLOCK} for row in every]
        self.summary = json.loads((path / "summary.json").read_text())

    def of(self, key: str) -> list[Any]:
        return [row[key] for row in self.rows if key in row]

    def at(self, key: str) -> list[int]:
        """Updates after which a value was logged."""
        return [row["step"] for row in self.rows if key in row]

    @property
    def checkpoint(self) -> dict[str, Any]:
        return torch.load(self.path / "checkpoints" / "last.ckpt", weights_only=True)

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        return self.checkpoint["state_dict"]


class Place:
    """One text, of 18 windows an epoch in 4 lanes and 3 of validation, and the runs on it."""

    def __init__(self, directory: Path) -> None:
        self.outputs = directory / "outputs"
        draw = random.Random(0)
        words = ["the", "a", "cat", "dog", "sat", "ran", "on", "under", "mat", "and", "then"]
        paragraphs = [" ".join(draw.choices(words, k=draw.randint(20, 60))) for _ in range(40)]
        (directory / "text.txt").write_text("\n\n".join(paragraphs) + "\n")
        self.settings = [
            *("data=files", f"data.path={directory / 'text.txt'}", "data.unit=paragraph"),
            *("data.valid_fraction=0.2", "data.test_fraction=0.2", "tokenizer=bytes", "name=tiny"),
            *(f"outputs={self.outputs}", "data.batch_size=4", "data.bptt=64", "kernels=torch"),
            *("model.embedding_size=4", "model.hidden_size=4", "model.num_layers=1", "threads=1"),
            *("model.dropout=0", "optimizer=sgd", "optimizer.lr=1", "callbacks.samples=null"),
            *("trainer.precision=32-true", "trainer.max_epochs=2", "trainer.log_every_n_steps=1"),
        ]
        self._configs: dict[tuple[str, ...], dict[str, Any]] = {}
        self._undisturbed: dict[tuple[str, ...], Fitted] = {}

    def config(self, *argv: str) -> dict[str, Any]:
        if argv not in self._configs:
            self._configs[argv] = check(compose([*self.settings, *argv]))[0]
        return deepcopy(self._configs[argv])

    def fit(self, *argv: str) -> Fitted:
        """Train, once for all who ask for the same."""
        if argv not in self._undisturbed:
            self._undisturbed[argv] = self.train(*argv)
        return self._undisturbed[argv]

    def train(self, *argv: str, kill_at: tuple[int, ...] = ()) -> Fitted:
        """Train, killed before the windows of these numbers, of all epochs, and gone on with."""
        config = self.config(*argv)
        run = self._new_run(config)
        for kill in (*kill_at, None):
            run.start(config)
            with pytest.MonkeyPatch.context() as patch:
                if kill is not None:
                    _kill_before(patch, kill)
                self._work(run, config, kill)
            run.release()
        return Fitted(run.path)

    def in_two_processes(self, *argv: str) -> Fitted:
        """Train in two real processes."""
        config = self.config(*argv, "trainer.devices=2", "trainer.strategy=ddp")
        run = self._new_run(config)
        run.start(config)
        work_in_processes(run, config)
        run.release()
        return Fitted(run.path)

    def _new_run(self, config: dict[str, Any]) -> Run:
        number = len(list(self.outputs.glob("tiny/*")))
        return Run.named(config["outputs"], config["name"], f"run-{number}")

    def _work(self, run: Run, config: dict[str, Any], kill: int | None) -> None:
        torch.manual_seed(99)  # whatever a process begins with
        data = make_data(config)
        in_windows(config["trainer"], data)
        newest = latest_checkpoint(run.path / "checkpoints")
        if kill is None:
            work(run, config, newest, data)
            return
        with pytest.raises(KilledError):
            work(run, config, newest, data)


def _kill_before(patch: pytest.MonkeyPatch, window: int) -> None:
    step = Task.training_step

    def training_step(self: Task, batch: Any, batch_idx: int) -> torch.Tensor:
        if self.trainer.fit_loop.total_batch_idx == window:
            raise KilledError
        return step(self, batch, batch_idx)

    patch.setattr(Task, "training_step", training_step)


def assert_same(one: Fitted, other: Fitted) -> None:
    """The same rows, weights, optimizer, schedule, random state and summary, bit for bit."""
    assert one.rows == other.rows
    for name, tensor in one.weights.items():
        assert torch.equal(tensor, other.weights[name]), name
    torch.set_printoptions(threshold=10_000)
    for key in ("lr_schedulers", "optimizer_states", "random"):
        assert repr(one.checkpoint[key]) == repr(other.checkpoint[key])
    timed = ("seconds", "tokens_per_second", "peak_memory_bytes")
    summaries = [{k: v for k, v in each.summary.items() if k not in timed} for each in (one, other)]
    assert summaries[0] == summaries[1]
