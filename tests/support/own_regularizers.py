"""Regularizers of a user's own."""

import torch

from lmkit.regularizers import Regularizer


class Constant(Regularizer):
    """The same at every position, a scalar or not."""

    def __init__(self, shape: list[int]) -> None:
        self.shape = shape

    def term(self, output, mask):
        return torch.full(self.shape, 0.25)


class Mine(Regularizer):
    """One that cannot be had."""

    def __init__(self, depth: int = 1) -> None:
        if depth > 3:
            raise ValueError(f"depth={depth} is more than 3")

    def term(self, output, mask):
        return torch.zeros(())
