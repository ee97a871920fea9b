"""From stores to batches: documents to lanes, lanes to windows, and Lightning's data module."""

from lmkit.windows.datamodule import DataModule
from lmkit.windows.lanes import Lanes, cut_stream, plan_lanes
from lmkit.windows.loader import WindowLoader
from lmkit.windows.mixture import MixtureLoader
from lmkit.windows.window import Passes, Tokens, Window

__all__ = [
    "DataModule",
    "Lanes",
    "MixtureLoader",
    "Passes",
    "Tokens",
    "Window",
    "WindowLoader",
    "cut_stream",
    "plan_lanes",
]
