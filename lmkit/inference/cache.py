"""The continuous cache (Grave, Joulin and Usunier 2017, arXiv:1612.04426).

Beside the model stands a distribution over the words that came before in the same text: each of the
last `size` positions i counts for its target with a weight that grows with how well the hidden
vector there, h_i, agrees with the one now, h_t (equation 3 of the paper, of whose h_i the one that
predicted x_{i+1} stands beside x_{i+1}):

    p_cache(w) ~ sum_i [target_i = w] exp(theta h_t . h_i)
    p(w) = (1 - weight) p_model(w) + weight p_cache(w)

h is what the head reads. Where the cache is empty, at the first token of a text, p is p_model.
awd-lstm-lm's pointer.py has the same h and the same products, but leaves the cache out as long as
it is not full (its first `window` + 1 tokens are the model's alone).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lmkit.errors import UserError
from lmkit.inference.rows import read_rows
from lmkit.inference.trained import TrainedModel
from lmkit.model import Output, Reader
from lmkit.ranges import NonNegative, Share, Size
from lmkit.windows import Tokens, Window
from lmkit.windows.lanes import Protocol

Floats = npt.NDArray[np.float64]

THETA, WEIGHT = 0.3, 0.1
PRODUCTS = 2**22  # of hidden vectors, that exist at a time


@dataclass(frozen=True)
class Cache:
    """The settings of a continuous cache.

    size: positions that are remembered.
    theta: how much more those with a similar hidden vector count; 0: all of them alike; null: 0.3.
    weight: share of the cache in the mixture (lambda of the paper); null: 0.1.
    """

    size: Size
    theta: NonNegative | None = None
    weight: Share | None = None

    def theta_and_weight(self) -> tuple[float, float]:
        """Both, with their defaults."""
        theta = THETA if self.theta is None else self.theta
        return theta, WEIGHT if self.weight is None else self.weight

    def complete(self) -> Cache:
        """The same with the defaults of theta and weight."""
        return Cache(self.size, *self.theta_and_weight())


class History:
    """What the lanes have read last: the hidden vector and the target of `size` positions each."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._hidden: Tensor | None = None  # (lanes, up to size, hidden_size)
        self._targets: Tensor | None = None  # (lanes, up to size)
        self._texts: Tensor | None = None  # the same; -1 where there is no target
        self._text: Tensor | None = None  # (lanes,), the number of the text that is being read

    def log_prob(
        self, hidden: Tensor, targets: Tensor, resets: Tensor, mask: Tensor, thetas: list[float]
    ) -> Tensor:
        """log p_cache of each target, float32 (thetas, lanes, time), after which the window is
        remembered; not a number where the cache is empty, -inf where it does not have the target.

        hidden: (lanes, time, hidden_size), the next window's. targets, resets, mask: as a `Window`
        has them, (lanes, time). There may be fewer lanes than before: the last have ended.
        """
        before = self._extend(hidden.float(), targets, resets, mask)
        lanes, time = targets.shape
        assert self._hidden is not None
        block = _block(lanes, min(self.size, self._hidden.shape[1]))
        parts = [
            self._of_block(before, begin, min(begin + block, time), thetas)
            for begin in range(0, time, block)
        ]
        self._forget()
        return torch.cat(parts, dim=2)

    def _extend(self, hidden: Tensor, targets: Tensor, resets: Tensor, mask: Tensor) -> int:
        """Add a window to what is remembered; how many positions were there before."""
        lanes = len(targets)
        text = resets.cumsum(1)
        if self._text is not None:
            text = text + self._text[:lanes, None]
        self._text = text[:, -1]
        texts = torch.where(mask, text, -1)
        if self._hidden is None or self._targets is None or self._texts is None:
            self._hidden, self._targets, self._texts = hidden, targets, texts
            return 0
        before = self._hidden.shape[1]
        self._hidden = torch.cat([self._hidden[:lanes], hidden], dim=1)
        self._targets = torch.cat([self._targets[:lanes], targets], dim=1)
        self._texts = torch.cat([self._texts[:lanes], texts], dim=1)
        return before

    def _of_block(self, before: int, begin: int, end: int, thetas: list[float]) -> Tensor:
        """`log_prob` of the window's positions from begin to end, (thetas, lanes, positions)."""
        assert self._hidden is not None
        assert self._targets is not None
        assert self._texts is not None
        now = slice(before + begin, before + end)
        past = slice(max(0, before + begin - self.size), before + end - 1)
        at = torch.arange(now.start, now.stop, device=self._texts.device)[:, None]
        back = at - torch.arange(past.start, past.stop, device=self._texts.device)
        texts, targets = self._texts[:, now, None], self._targets[:, now, None]
        # (lanes, positions, remembered positions)
        counts = (back > 0) & (back <= self.size) & (texts == self._texts[:, None, past])
        counts &= texts >= 0
        hits = counts & (targets == self._targets[:, None, past])
        with torch.autocast(self._hidden.device.type, enabled=False):
            products = self._hidden[:, now] @ self._hidden[:, past].transpose(1, 2)
        if not products.shape[2]:  # the very first position
            return products.new_full((len(thetas), *products.shape[:2]), torch.nan)
        products.masked_fill_(~counts, -torch.inf)
        products -= products.amax(dim=2, keepdim=True).nan_to_num_(neginf=0.0)
        return torch.stack([_log_share(products, counts, hits, theta) for theta in thetas])

    def _forget(self) -> None:
        """Keep the newest positions alone."""
        assert self._hidden is not None
        assert self._targets is not None
        assert self._texts is not None
        if self._hidden.shape[1] > self.size:
            self._hidden = self._hidden[:, -self.size :].clone()
            self._targets = self._targets[:, -self.size :].clone()
            self._texts = self._texts[:, -self.size :].clone()


def _block(lanes: int, remembered: int) -> int:
    """Positions of a window that are looked at together: n of them have lanes * n * (remembered +
    n) products."""
    return max(1, int((remembered**2 / 4 + PRODUCTS / lanes) ** 0.5 - remembered / 2))


def _log_share(products: Tensor, counts: Tensor, hits: Tensor, theta: float) -> Tensor:
    """The log of the share of hits in the weights exp(theta * products) of what counts, all
    (lanes, positions, remembered positions) -> (lanes, positions)."""
    # exp(0 * -inf) is not a number.
    weights = (theta * products).exp_() if theta > 0 else counts.float()
    return ((weights * hits).sum(dim=2) / weights.sum(dim=2)).log_()


def mixed(nll: Floats, log_prob: Floats, weight: float) -> Floats:
    """The nll of (1 - weight) p_model + weight p_cache, in float64.

    nll: of the model, in nats; log_prob: log p_cache, not a number where the cache is empty; both
    have one shape.
    """
    nll, log_prob = nll.astype(np.float64), log_prob.astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        both = np.logaddexp(np.log1p(-weight) - nll, np.log(weight) + log_prob)
    return np.where(np.isnan(log_prob), nll, -both)


def check_hidden(trained: TrainedModel) -> None:
    """Raise UserError if a model has no hidden vectors that could be compared."""
    token = torch.zeros(1, 1, dtype=torch.int64, device=trained.device)
    with trained.computing():
        hidden = Reader(trained.model).read(token, token > 0).hidden
    if not hidden.is_floating_point():
        raise UserError("cache: the model has no hidden vectors to compare; leave it out")


def read_with_cache(
    trained: TrainedModel,
    text: Tokens,
    protocol: Protocol,
    num_lanes: int,
    size: int = 0,
    thetas: list[float] | None = None,
    what: str = "cache",
) -> npt.NDArray[np.float32]:
    """The nll of each token in nats and, for each theta, log p_cache as `History.log_prob` has it:
    (1 + thetas, tokens). what: the progress bar's name.

    Memory: a hidden vector for each of the last `size` positions of each lane, and the result.
    """
    history = History(size)

    def measure(window: Window, output: Output) -> Tensor:
        nll = trained.head.nll(output.hidden, window.targets)[None]
        if not thetas:
            return nll
        read = (output.hidden, window.targets, window.resets, window.mask)
        return torch.cat([nll.float(), history.log_prob(*read, thetas)])

    num_rows = 1 + len(thetas or [])
    return read_rows(trained, text, protocol, num_lanes, num_rows, measure, what)
