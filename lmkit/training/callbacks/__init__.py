"""The callbacks: checkpoints, signals, values that are not finite, samples, the progress bar."""

from lmkit.training.callbacks.checkpoint import Checkpoint
from lmkit.training.callbacks.milestones import Milestones
from lmkit.training.callbacks.non_finite import NonFiniteError, StopOnNonFinite
from lmkit.training.callbacks.samples import Samples
from lmkit.training.callbacks.stop_on_signal import StopOnSignal
from lmkit.training.callbacks.watchdog import Watchdog

__all__ = [
    "Checkpoint",
    "Milestones",
    "NonFiniteError",
    "Samples",
    "StopOnNonFinite",
    "StopOnSignal",
    "Watchdog",
]
