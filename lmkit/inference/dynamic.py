"""Dynamic evaluation (Krause et al. 2018, arXiv:1709.07432): the weights learn from what was read.

A text is read in segments of a few tokens. Each is predicted with the weights as they are; then its
mean nll has the gradient g, and every weight W takes one step, beside one back to the trained W_g:

    sgd:  W <- W - lr g + decay (W_g - W)
    rms:  W <- W - lr g / (RMS_g + epsilon) + min(decay RMS_norm, 1) (W_g - W)

RMS_g is the root of the mean square of a weight's gradient over the training text, RMS_norm =
RMS_g / mean(RMS_g), where the mean is, as in the authors' program, that over the parameters of the
mean in each. The state that goes on into the next segment is that of before the step.

A reset begins anew with the trained weights, as it does with the zero state: under `document` a
text has one nll, whatever was read before it. `stream`, in one lane, is the published protocol.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.func import functional_call

from lmkit.errors import UserError
from lmkit.head import Head
from lmkit.inference.cache import History
from lmkit.inference.trained import TrainedModel
from lmkit.model import LanguageModel
from lmkit.model.state import States, detached
from lmkit.ranges import NonNegative, Positive, Size
from lmkit.system.progress import progress
from lmkit.windows import Tokens, Window
from lmkit.windows.lanes import Protocol

Floats = npt.NDArray[np.float32]
Weights = dict[str, Tensor]
Rule = Literal["rms", "sgd"]

NUM_LANES = 100  # in which the training text is read for the gradients, as by the authors' program
UPDATED = 2**17  # weights at a time, which stay in a processor's cache meanwhile

# For each token of a segment: of rms the authors' 5e-5 and 2e-3 for 5 tokens.
RMS_LR, RMS_DECAY = 1e-5, 4e-4
SGD_LR = 5e-2
EPSILON, WINDOWS = 2e-5, 500
# Of a token, in nats: where it is more, and exp of it no number, the weights have diverged.
LARGEST_NLL = math.log(sys.float_info.max)


@dataclass(frozen=True)
class Dynamic:
    """The settings of dynamic evaluation.

    rule: rms divides each weight's gradient by its root mean square over the training text; sgd
    does not, and reads no training text.
    lr: step of an update; null: with rms 1e-5 for each token of a segment (the authors' 5e-5 for
    5), with sgd 5e-2.
    decay: share of the way back to the trained weights; null: with rms 4e-4 for each token of a
    segment (the authors' 2e-3 for 5), with sgd 0.
    epsilon: of rms, is added to the root mean square; null: 2e-5.
    segment: tokens between two updates; with more of them it is faster.
    windows: of the training text, 100 segments each, from which rms has its root mean squares;
    null: 500. The authors read all of WikiText-2, some 4000.
    """

    rule: Rule = "rms"
    lr: Positive | None = None
    decay: NonNegative | None = None
    epsilon: Positive | None = None
    segment: Size = 5
    windows: Size | None = None

    def check(self) -> None:
        """Raise UserError for settings of rms that sgd does not have."""
        of_rms = {"epsilon": self.epsilon, "windows": self.windows}
        given = [f"dynamic.{key}={value:g}" for key, value in of_rms.items() if value is not None]
        if self.rule == "sgd" and given:
            raise UserError(f"{', '.join(given)}: no effect with dynamic.rule=sgd; leave it out")

    def complete(self) -> Dynamic:
        """The same with the defaults of its rule; sgd has neither epsilon nor windows."""
        rms = self.rule == "rms"
        return replace(
            self,
            lr=self.lr or self.segment * (RMS_LR if rms else SGD_LR),
            decay=self.segment * RMS_DECAY * rms if self.decay is None else self.decay,
            epsilon=(self.epsilon or EPSILON) if rms else None,
            windows=(self.windows or WINDOWS) if rms else None,
        )


def shown(settings: Dynamic) -> str:
    """The settings of an update, as messages write them."""
    complete = settings.complete()
    return f"rule={complete.rule}, lr={complete.lr:.3g}, decay={complete.decay:.3g}"


class DivergedError(UserError):
    """The weights have learnt until they predict no number any more."""


class Pair(nn.Module):
    """A model and its head as one module, whose parameters can be put in the place of theirs."""

    def __init__(self, model: LanguageModel, head: Head) -> None:
        super().__init__()
        self.model, self.head = model, head

    def forward(
        self, tokens: Tensor, resets: Tensor, state: States, targets: Tensor
    ) -> tuple[Tensor, Tensor, States]:
        """A window and the state before it -> hidden vectors, nll (lanes, time), state."""
        output = self.model(tokens, resets, state)
        return output.hidden, self.head.nll(output.hidden, targets), output.state


def learning(pair: Pair) -> Weights:
    """The weights that can learn; raises UserError if a model has none."""
    found = {
        name: parameter.detach()
        for name, parameter in pair.named_parameters()
        if parameter.requires_grad and parameter.numel()
    }
    if not found:
        raise UserError("dynamic: the model has no weights that could learn; leave it out")
    return found


class Adapted:
    """A copy of a trained model's weights that takes steps; the model itself does not change."""

    def __init__(self, trained: TrainedModel) -> None:
        self.trained = trained
        self._pair = Pair(trained.model, trained.head)
        self.initial = learning(self._pair)
        self.weights = {
            name: tensor.clone().requires_grad_() for name, tensor in self.initial.items()
        }
        self.state: States | None = None

    def begin(self) -> None:
        """Go back to the trained weights and the zero state."""
        self.state = None
        with torch.no_grad():
            for name, tensor in self.weights.items():
                tensor.copy_(self.initial[name])

    def read(self, window: Window) -> tuple[Tensor, Tensor, Weights]:
        """A window on the device -> hidden vectors, nll (lanes, time), and the gradient of the mean
        nll of its tokens by each weight."""
        lanes = len(window.tokens)
        state = self.trained.model.initial_state(lanes) if self.state is None else self.state
        state = tuple(tuple(part[:lanes] for part in layer) for layer in state)
        # Outside of training mode cuDNN has no gradients of a recurrent layer.
        with self.trained.computing(gradients=True), torch.backends.cudnn.flags(enabled=False):
            inputs = (window.tokens, window.resets, state, window.targets)
            hidden, nll, after = functional_call(self._pair, self.weights, inputs)
            loss = nll[window.mask].mean()
            found = torch.autograd.grad(loss, [*self.weights.values()], allow_unused=True)
        self.state = detached(after)
        gradients = {
            name: gradient.to_dense() if gradient.is_sparse else gradient
            for name, gradient in zip(self.weights, found, strict=True)
            if gradient is not None
        }
        return hidden.detach(), nll.detach(), gradients


class Update(NamedTuple):
    """What an update multiplies by: each weight's gradient by its `rate`, its distance from the
    trained one by its `pull`; tensors of its shape, or one number for all."""

    rate: Tensor | float
    pull: Tensor | float


def updates(settings: Dynamic, rms: Weights, names: list[str]) -> dict[str, Update]:
    """The update of each weight; rms: RMS_g of each, none with `sgd`."""
    settings = settings.complete()
    assert settings.lr is not None
    assert settings.decay is not None
    if settings.rule == "sgd":
        return {name: Update(settings.lr, settings.decay) for name in names}
    assert settings.epsilon is not None
    mean = float(torch.stack([each.mean() for each in rms.values()]).mean())
    if not mean:
        raise UserError(
            "dynamic: rule=rms divides by the gradients over the training text, and all of them "
            "are 0; take rule=sgd, or another training text"
        )
    return {
        name: Update(
            settings.lr / (each + settings.epsilon),
            (each * (settings.decay / mean)).clamp_(max=1.0),
        )
        for name, each in rms.items()
    }


@torch.no_grad()
def take_step(weight: Tensor, initial: Tensor, gradient: Tensor, update: Update) -> None:
    """weight <- weight + pull (initial - weight) - rate gradient, in place; all of one shape."""
    tensors = [each.flatten() for each in (weight.detach(), initial, gradient)]
    factors = [
        factor.flatten().split(UPDATED) if isinstance(factor, Tensor) else None for factor in update
    ]
    for number, (w, w_g, g) in enumerate(zip(*(t.split(UPDATED) for t in tensors), strict=True)):
        rate, pull = (
            update[which] if factor is None else factor[number]
            for which, factor in enumerate(factors)
        )
        w.lerp_(w_g, pull)
        if isinstance(rate, Tensor):
            w.addcmul_(g, rate, value=-1)
        else:
            w.sub_(g, alpha=rate)


def root_mean_squares(
    trained: TrainedModel, text: Tokens, protocol: Protocol, settings: Dynamic
) -> Weights:
    """RMS_g of each weight over windows of the training text.

    A window's gradient is that of its mean nll, and counts as often as it has tokens.
    """
    units = {"document": text.document_ends, "sentence": text.line_ends}
    num_lanes = min(NUM_LANES, len(units.get(protocol, text.tokens)))
    num_lanes = max(1, min(num_lanes, text.num_tokens // settings.segment))  # no shorter lanes
    loader = trained.loader(text, protocol, num_lanes, num_lanes * settings.segment)
    adapted = Adapted(trained)
    squares = {name: torch.zeros_like(each) for name, each in adapted.initial.items()}
    most = settings.complete().windows
    assert most is not None
    num_tokens, left = 0, min(most, len(loader))
    expected = text.num_tokens * left // len(loader)
    with progress("gradients", expected) as advance:
        for window in trained.windows(loader):
            if not window.num_targets:  # one position, after which every state is zero
                adapted.state = None
                continue
            _, _, gradients = adapted.read(window)
            for name, gradient in gradients.items():
                squares[name].addcmul_(gradient, gradient, value=window.num_targets)
            num_tokens += window.num_targets
            advance(num_tokens)
            left -= 1
            if not left:
                break
    return {name: each.div_(num_tokens).sqrt_() for name, each in squares.items()}


class Stretch:
    """The tokens of a text from `begin` to `end`, as a text of its own."""

    def __init__(self, text: Tokens, begin: int, end: int) -> None:
        self.tokens = text.tokens[begin:end]
        self.num_tokens = end - begin
        self._text, self._begin = text, begin

    @property
    def document_ends(self) -> npt.NDArray[np.int64]:
        return self._inside(self._text.document_ends)

    @property
    def line_ends(self) -> npt.NDArray[np.int64]:
        return self._inside(self._text.line_ends)

    def _inside(self, ends: npt.NDArray[np.integer]) -> npt.NDArray[np.int64]:
        ends = np.asarray(ends).astype(np.int64) - self._begin
        return np.append(ends[(ends > 0) & (ends < self.num_tokens)], self.num_tokens)

    def document_id(self, index: int) -> str:
        """Its number."""
        return str(index)

    def release(self) -> None:
        """Free the memory of what was read."""
        self._text.release()


def stretches(text: Tokens, protocol: Protocol) -> Iterator[Tokens]:
    """The parts of a text that are read from the trained weights each, in order."""
    if protocol == "stream":
        yield text
        return
    begin = 0
    for end in text.document_ends if protocol == "document" else text.line_ends:
        yield Stretch(text, begin, int(end))
        begin = int(end)


def read_dynamically(
    trained: TrainedModel,
    text: Tokens,
    protocol: Protocol,
    settings: Dynamic,
    rms: Weights,
    *,
    cache_size: int = 0,
    thetas: list[float] | None = None,
    what: str = "dynamic",
) -> Floats:
    """The nll of each token in nats, (1, tokens), in one lane; with a cache of the adapted hidden
    vectors, log p_cache of each theta in further rows, as `History.log_prob` has it.

    rms: of `root_mean_squares`; empty with `sgd`. what: the progress bar's name.
    """
    adapted = Adapted(trained)
    taken = updates(settings, rms, [*adapted.initial])
    values = np.empty((1 + len(thetas or []), text.num_tokens), np.float32)
    num_read = 0
    with progress(what, text.num_tokens) as advance:
        for stretch in stretches(text, protocol):
            adapted.begin()
            history = History(cache_size) if cache_size and thetas else None
            loader = trained.loader(stretch, "stream", 1, settings.segment)
            for window in trained.windows(loader):
                hidden, nll, gradients = adapted.read(window)
                if not bool((nll < LARGEST_NLL).all()):
                    raise DivergedError(
                        f"dynamic: the weights diverged at token {num_read:,} with "
                        f"{shown(settings)}: lower lr"
                    )
                rows = nll
                if history is not None and thetas is not None:
                    with torch.no_grad():
                        read = (window.targets, window.resets, window.mask, thetas)
                        rows = torch.cat([nll, history.log_prob(hidden, *read)[:, 0]])
                for name, gradient in gradients.items():
                    weight, initial = adapted.weights[name], adapted.initial[name]
                    take_step(weight, initial, gradient, taken[name])
                values[:, num_read : num_read + window.num_targets] = rows.cpu().numpy()
                num_read += window.num_targets
                advance(num_read)
    assert num_read == text.num_tokens
    return values
