"""Terms added to the head's loss in training: activation penalties and auxiliary losses."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch.nn.functional as F
from torch import Tensor

from lmkit.model import Output
from lmkit.ranges import NonNegative


class Regularizer(ABC):
    """A term of the training loss; `regularizers.NAME` of a config is logged as `train/NAME`.

    A subclass defines `term`, and its constructor's arguments are its keys. The values of `term` at
    each position are summed as the nll is. The result is exactly the mean over the tokens of an
    update, however its windows are cut and however many processes share them.
    """

    @abstractmethod
    def term(self, output: Output, mask: Tensor) -> Tensor:
        """What each position adds to the loss, float32 (lanes, time) and finite; or a scalar that
        every position adds.

        mask: bool (lanes, time), whether the position has a target; where it has none, as at the
        reset before each document, the hidden vector has no meaning and the term does not count.
        """


class ActivationRegularization(Regularizer):
    """AR of Merity et al. 2018 (arXiv:1708.01009): the mean square of the hidden vector's units,
    after dropout.

    weight: factor of the term (alpha of the paper).
    """

    def __init__(self, weight: NonNegative = 2.0) -> None:
        self.weight = weight

    def term(self, output: Output, mask: Tensor) -> Tensor:
        return self.weight * output.hidden.float().square().mean(-1)


class TemporalActivationRegularization(Regularizer):
    """TAR of Merity et al. 2018 (arXiv:1708.01009): the mean square of the difference between the
    hidden vectors of a position and the one before it, both without dropout.

    The first token of a document and the first position of a window have no position before.

    weight: factor of the term (beta of the paper).
    """

    def __init__(self, weight: NonNegative = 1.0) -> None:
        self.weight = weight

    def term(self, output: Output, mask: Tensor) -> Tensor:
        raw = output.raw.float()
        change = (raw[:, 1:] - raw[:, :-1]).square().mean(-1)
        # A token and the reset position before it belong to different documents.
        return self.weight * F.pad(change * mask[:, :-1], (1, 0))
