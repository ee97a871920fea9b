"""Config-driven experiments with recurrent language models."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from os import PathLike

    from lmkit.inference import TrainedModel

    __version__: str

__all__ = ["__version__", "load"]


def __getattr__(name: str) -> str:
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("recurrent-lmkit")
        except PackageNotFoundError:  # a checkout on the path
            return "not installed"
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


# PyTorch's GNU OpenMP lets threads that wait for others spin for some milliseconds, on cores that
# the others may need. With this they sleep after 20 microseconds instead.
if "torch" not in sys.modules and "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")


def load(
    run: str | PathLike[str],
    *,
    outputs: str | PathLike[str] = "outputs",
    checkpoint: str = "best",
    precision: str = "32-true",
    kernels: str | None = None,
    threads: int | None = None,
) -> TrainedModel:
    """The trained model of a run, with methods `score`, `nll`, `perplexity` and `generate`.

    run: its directory, its id, the beginning of its id, or `latest`; ids are looked up in
    `outputs`. checkpoint: `best`, `last` or another name in the run's `checkpoints/`. precision:
    full by default, whatever the run was trained in: in bf16 a surprisal is off by up to 0.01 nats.
    kernels: by default the run's. threads: by default PyTorch's number.
    """
    from lmkit.config.check import check
    from lmkit.config.compose import compose
    from lmkit.inference import TrainedModel
    from lmkit.run import Run, no_checkpoint

    named = Run.find(str(outputs), str(run), no_checkpoint)
    changes = [
        f"trainer.precision={precision}",
        f"threads={'null' if threads is None else threads}",
        *([f"kernels={kernels}"] if kernels else []),
    ]
    config, _ = check(compose(changes, named.path / "config.yaml"), trains=False)
    return TrainedModel.load(named, config, checkpoint)
