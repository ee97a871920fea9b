"""Config-driven experiments with recurrent language models."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from os import PathLike

    from lmkit.trained import TrainedModel

__all__ = ["load"]

# A fresh tensor of 100 MB costs as much in page faults of 4 KiB as its softmax: ask for huge pages
# (PyTorch reads this at its first large tensor).
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


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
    from lmkit.run import Run
    from lmkit.trained import TrainedModel

    found = Run.find(str(outputs), str(run))
    config, _ = check(compose([], found.path / "config.yaml"), trains=False)
    return TrainedModel.load(found, config, checkpoint)
