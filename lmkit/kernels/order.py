"""The order of sums on a GPU, which deterministic algorithms fix."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def any_order() -> Iterator[None]:
    """A context without deterministic algorithms, for what needs none, or is to be as PyTorch has
    it by default."""
    if not torch.are_deterministic_algorithms_enabled():
        yield
        return
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(True, warn_only=warn_only)
