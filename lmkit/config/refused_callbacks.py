"""Callbacks of Lightning that cannot work in a training here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from lmkit.config.targets import named_class

# By name, with the reason; their subclasses cannot work either.
REFUSED = {
    "BackboneFinetuning": "asks for a module `backbone`, which no model here has",
    "BaseFinetuning": "is a base of others, of classes of your own",
    "BatchSizeFinder": "would try batches in place of a training; set data.batch_size",
    "GradientAccumulationScheduler": (
        "would change how many windows an update has, whose tokens are what they are weighted by; "
        "set trainer.accumulate_grad_batches"
    ),
    "LearningRateFinder": "would try rates in place of a training; lmkit sweep finds one",
    "ModelCheckpoint": (
        "would write states within a step, from which no run goes on exactly; callbacks.checkpoint "
        "has every_n_train_steps, every_n_epochs, monitor, mode and keep"
    ),
    "ModelPruning": "makes new weights in each forward, which a window passes more than once",
    "OnExceptionCheckpoint": (
        "would write a state within a step, from which no run goes on exactly; a run that fails "
        "goes on from its last checkpoint"
    ),
    "ProgressBar": "would draw over the bar that a run has",
    "RichProgressBar": "would draw over the bar that a run has",
    "StochasticWeightAveraging": (
        "has no state in checkpoints, so that a run that goes on would be another; "
        "averaging=swa has"
    ),
    "TQDMProgressBar": "would draw over the bar that a run has",
}


def refused_callbacks(callbacks: Mapping[str, Any]) -> Iterator[str]:
    """The mistake of each callback that cannot work here."""
    for key, node in callbacks.items():
        named = named_class("callbacks", node)
        bases = [each for each in named.__mro__ if each.__module__.startswith("lightning.")]
        kind = next((each.__name__ for each in bases if each.__name__ in REFUSED), None)
        if kind and (kind != "BaseFinetuning" or named is bases[0]):  # a subclass may work
            yield f"callbacks.{key}: {kind} {REFUSED[kind]}; leave it out"
