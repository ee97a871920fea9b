"""The callback that generates text samples during training."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.seed import isolate_rng

from lmkit.ranges import Seed, Size
from lmkit.run.jsonl import JsonLines
from lmkit.training.loggers.jsonl import is_first, position

Generate = Callable[[LightningModule, str, int, int], str]


class Samples(Callback):
    """Continues a prompt after every validation and writes `samples.jsonl`.

    `generate(task, prompt, num_tokens, seed) -> text`; training's random numbers are not affected.
    """

    def __init__(
        self, generate: Generate, samples_path: Path, prompt: str, num_tokens: Size, seed: Seed
    ) -> None:
        """samples_path: of the file. prompt: the text to continue. num_tokens: of the
        continuation, at most. seed: of its random draws; the same every time."""
        self.generate = generate
        self.prompt = prompt
        self.num_tokens = num_tokens
        self.seed = seed
        self.followers: list[Callable[[Mapping[str, Any]], None]] = []
        self._lines = JsonLines(samples_path)

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
        """The rows written so far; in a resumed run, those up to its checkpoint."""
        return self._lines.rows()

    def state_dict(self) -> dict[str, Any]:
        self._lines.sync()
        return {"length": self._lines.length}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._lines.resume(state_dict["length"], writes=is_first())
