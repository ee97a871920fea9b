"""Restores the process-wide settings that a training changes, for other code in the process."""

from __future__ import annotations

import logging
import os
import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

# Environment variables that Lightning and its launcher leave behind, and one that cuBLAS reads.
VARIABLES = (
    "CUBLAS_WORKSPACE_CONFIG",
    "HOROVOD_FUSION_THRESHOLD",
    "PL_GLOBAL_SEED",
    "PL_SEED_WORKERS",
    "TORCHELASTIC_SIGNALS_TO_HANDLE",
)
# The loggers of libraries whose levels are changed.
LOGGERS = (
    "alembic",
    "lightning.fabric",
    "lightning.pytorch",
    "lightning.pytorch.loggers.mlflow",
    "mlflow",
    "torch.distributed.elastic",
)


@contextmanager
def restored() -> Iterator[None]:
    """A context after which these are as before: filters of warnings, levels of libraries' loggers,
    deterministic algorithms, cuDNN's benchmark, random states, VARIABLES."""
    levels = {name: logging.getLogger(name).level for name in LOGGERS}
    variables = {name: os.environ.get(name) for name in VARIABLES}
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    fills = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    benchmark = torch.backends.cudnn.benchmark
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    with warnings.catch_warnings():
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])
            torch.set_rng_state(states[2])
            torch.backends.cudnn.benchmark = benchmark
            torch.utils.deterministic.fill_uninitialized_memory = fills  # type: ignore[attr-defined]
            torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
            for name, value in variables.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)
