"""Makes the shards of a store as tasks of datatrove's executors: here, under SLURM or with Ray."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmkit.assembly import text_and_tokenizer
from lmkit.config.check import check
from lmkit.config.compose import compose
from lmkit.store.pool import Job, num_cores
from lmkit.store.preparation import Encode, plan


@dataclass(frozen=True)
class ShardStep:
    """A step of a datatrove pipeline: task `rank` makes every `world_size`-th shard.

    Whole shards are not made again. Data from earlier steps of the pipeline passes through.
    """

    encode: Encode
    jobs: tuple[Job, ...]

    def __call__(
        self, data: Iterable[Any] | None = None, rank: int = 0, world_size: int = 1
    ) -> Iterator[Any]:
        for job in self.jobs[rank::world_size]:
            self.encode(job, lambda num_tokens: None)
        yield from data or ()


def shard_step(arguments: Sequence[str], store: str, workers: int | None = None) -> ShardStep:
    """The step that encodes the data of a command line, `["data=jsonl", "data.path=..."]`.

    The text is hashed and the tokenizer trained here, in `workers` processes. When all tasks are
    done, `lmkit prepare` with the same arguments and store=DIR makes a store of the shards.
    """
    config, _ = check(compose(arguments), trains=False)
    cache, directory = Path(config["outputs"]) / ".cache", Path(store).expanduser().absolute()
    workers = num_cores() if workers is None else workers
    by_line = config["data"].get("protocol") == "sentence"
    encode, jobs = plan(
        *text_and_tokenizer(config), cache, workers=workers, store=directory, by_line=by_line
    )
    return ShardStep(encode, tuple(jobs))
