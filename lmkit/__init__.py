"""Config-driven experiments with recurrent language models."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from os import PathLike

    from lmkit.trained import TrainedModel

    __version__: str

__all__ = ["__version__", "load"]


def __getattr__(name: str) -> str:
    if name == "__version__":
        from importlib.metadata import version

        return version("lmkit")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


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
