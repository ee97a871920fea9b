"""Config-driven experiments with recurrent language models."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from os import PathLike

    from lmkit.trained import TrainedModel

__all__ = ["load"]


def load(
    run: str | PathLike[str],
    *,
    outputs: str | PathLike[str] = "outputs",
    checkpoint: str = "best",
) -> TrainedModel:
    """The trained model of a run, to `score`, `nll`, `perplexity` and `generate` with.

    run: its directory, its id, the beginning of one, or `latest`; ids are sought in `outputs`.
    checkpoint: `best`, `last` or another name in the run's `checkpoints/`.
    """
    from lmkit.check import check
    from lmkit.config import compose
    from lmkit.run import Run, no_checkpoint
    from lmkit.trained import TrainedModel

    found = Run.find(str(outputs), str(run), no_checkpoint)
    config, _ = check(compose([], found.path / "config.yaml"), trains=False)
    return TrainedModel.load(found, config, checkpoint)
