"""Monte Carlo dropout (Gal and Ghahramani 2016, arXiv:1512.05287; Melis et al. 2018).

A text is read several times with dropout as in training, each time with other masks, and the
probability of a token is the mean of those that it has: p(x_t) = 1/K sum_k p(x_t | masks_k). As in
training a window has masks of its own, so that the figure depends on seed, lanes and windows, but
on nothing else. Only dropout and zoneout are sampled: the state goes on from window to window also
where a training begins some lanes anew (`model.fresh_state`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from lmkit.errors import UserError
from lmkit.inference.order import TextOrder
from lmkit.inference.trained import TrainedModel
from lmkit.model import Masks, Reader
from lmkit.ranges import Seed, Size
from lmkit.system.progress import progress
from lmkit.windows import Tokens, WindowLoader
from lmkit.windows.lanes import Protocol

Floats = npt.NDArray[np.float64]

PROBED = 64  # tokens that are read to see whether there is any dropout


@dataclass(frozen=True)
class MCDropout:
    """The settings of Monte Carlo dropout.

    samples: readings whose probabilities are averaged.
    seed: of the masks.
    """

    samples: Size
    seed: Seed = 1


@contextmanager
def sampling(trained: TrainedModel) -> Iterator[None]:
    """The context in which a trained model and its head have the dropout of training, but no lane
    forgets its state in the middle of a text (`model.fresh_state`)."""
    modules = (trained.model, trained.head)
    fresh_state = getattr(trained.model, "fresh_state", 0.0)  # of a `LanguageModel`
    try:
        if fresh_state:
            trained.model.fresh_state = 0.0
        for module in modules:
            module.train()
        yield
    finally:
        if fresh_state:
            trained.model.fresh_state = fresh_state
        for module in modules:
            module.eval()


def check_dropout(trained: TrainedModel) -> None:
    """Raise UserError if a model is the same with dropout as without."""
    tokens = torch.arange(PROBED, device=trained.device)[None] % trained.tokenizer.vocabulary_size
    resets = torch.zeros_like(tokens, dtype=torch.bool)

    def nll() -> torch.Tensor:
        with Masks(1, 0, 0).use(), trained.computing():
            hidden = Reader(trained.model).read(tokens, resets).hidden
            return trained.head.nll_with_dropout(hidden, tokens)

    plain = nll()
    with sampling(trained):
        sampled = nll()
    if torch.equal(plain, sampled):
        raise UserError("mc_dropout: the model was trained without dropout; leave it out")


def mean_nll(
    trained: TrainedModel,
    text: Tokens,
    protocol: Protocol,
    num_lanes: int,
    bptt: int,
    settings: MCDropout,
) -> Floats:
    """The nll of each token in nats, (tokens,), of its mean probability over the samples.

    num_lanes, bptt: of the windows, each of which has masks of its own.
    """
    log_sum = np.full(text.num_tokens, -np.inf)
    for sample in range(settings.samples):
        loader = trained.loader(text, protocol, num_lanes, num_lanes * bptt)
        what = f"sample {sample + 1} of {settings.samples}"
        with progress(what, text.num_tokens) as advance:
            num_read = 0
            for numbers, nll in _sample(trained, loader, settings.seed, sample):
                log_sum[numbers] = np.logaddexp(log_sum[numbers], -nll)
                num_read += len(numbers)
                advance(num_read)
        assert num_read == text.num_tokens
    return np.log(settings.samples) - log_sum


def _sample(
    trained: TrainedModel, loader: WindowLoader, seed: int, sample: int
) -> Iterator[tuple[npt.NDArray[np.int64], Floats]]:
    """The numbers of each window's tokens and their nll, in one sample."""
    reader, order = Reader(trained.model), TextOrder(loader)
    for window in trained.windows(loader):
        masks = Masks(seed, sample, window.index, 0, loader.num_lanes)
        with sampling(trained), masks.use(), trained.computing():
            output = reader.read(window.tokens, window.resets)
            nll = trained.head.nll_with_dropout(output.hidden, window.targets)
        yield order.next(window.mask), nll[window.mask].double().cpu().numpy()
