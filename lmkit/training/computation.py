"""What training and evaluation compute of a window: the maths of a task, without its loop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from lmkit.errors import UserError
from lmkit.head import Head
from lmkit.model import LanguageModel, States, detached
from lmkit.model.dropout import Masks
from lmkit.regularizers import Regularizer
from lmkit.training.cuda_graphs import Function, Graph, capturable, gradients
from lmkit.windows import Window


class TrainingStep(NamedTuple):
    """What training makes of a window; a graph makes the gradients too."""

    loss: Tensor
    sums: Tensor  # over the targets, of the values that are logged
    state: States  # detached
    gradients: list[Tensor | None] | None = None  # of the parameters that are trained


class Scored(NamedTuple):
    """What evaluation makes of a window."""

    nll: Tensor  # (lanes, time)
    state: States  # detached


class Computation(pl.LightningModule):
    """A model, a head and regularizers, and what they make of a window; as one CUDA graph where
    that can be."""

    def __init__(
        self, model: LanguageModel, head: Head, regularizers: Mapping[str, Regularizer]
    ) -> None:
        """regularizers: by the name that the values of each are logged under."""
        super().__init__()
        self.model = model
        self.head = head
        self.regularizers = regularizers
        self._graphs: dict[str, Graph[Any] | None] = {}  # by stage

    @property
    def names(self) -> list[str]:
        """Of the sums of a training step."""
        terms = ["loss", *self.regularizers] if self.regularizers else []
        return [self.head.measure, *terms]

    def trained(self) -> list[nn.Parameter]:
        """The parameters that have gradients."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def train_on(self, window: Window, state: States, masks: Masks) -> TrainingStep:
        """The loss of a window that is read from a state, with masks of dropout."""
        graph = self._graph("train", self.both_passes)
        step: TrainingStep | None = None
        if graph and self.trainer.accumulate_grad_batches == 1:
            step = graph(window, state, masks)
        if step is not None:
            return step._replace(loss=step.loss.clone())  # it is kept
        with masks.use():
            return self.training_pass(window, state)

    def score(self, stage: str, window: Window, state: States) -> Scored:
        """The nll of a window that is read from a state; each stage has a graph of its own."""
        graph = self._graph(stage, self.evaluation_pass)
        scored: Scored | None = graph(window, state, None) if graph else None
        return self.evaluation_pass(window, state) if scored is None else scored

    def _graph(self, stage: str, function: Function[Any]) -> Graph[Any] | None:
        """The captured function of a stage, if there can be one."""
        if stage not in self._graphs:
            parts = [*self.model.modules(), *self.head.modules(), *self.regularizers.values()]
            may = capturable(self, parts)
            self._graphs[stage] = Graph(function, self.head, parts) if may else None
        return self._graphs[stage]

    def both_passes(self, window: Window, state: States) -> TrainingStep:
        """The forward and the backward pass of training."""
        step = self.training_pass(window, state)
        made = gradients(step.loss, self.trained())
        return step._replace(loss=step.loss.detach(), gradients=made)

    def training_pass(self, window: Window, state: States) -> TrainingStep:
        """The forward pass of training."""
        output = self.model(window.tokens, window.resets, state)
        output = output._replace(state=detached(output.state))
        loss, sums = self.head.loss(output.hidden, window.targets, window.weight)
        if self.regularizers:
            terms = [
                _term(name, one.term(output, window.mask), window.weight)
                for name, one in self.regularizers.items()
            ]
            loss = loss + sum((term * window.weight).sum() for term in terms)
            sums = _sums(loss, sums, terms, window)
        return TrainingStep(loss, sums, output.state)

    def evaluation_pass(self, window: Window, state: States) -> Scored:
        """The forward pass of evaluation."""
        output = self.model(window.tokens, window.resets, state)
        return Scored(self.head.nll(output.hidden, window.targets), detached(output.state))


def _term(name: str, term: Any, weight: Tensor) -> Tensor:
    """A regularizer's values at all positions, as `weight` has them; a scalar is that of each."""
    if isinstance(term, Tensor) and term.shape in (weight.shape, ()):
        return term.expand_as(weight)
    found = tuple(term.shape) if isinstance(term, Tensor) else f"a {type(term).__name__}"
    raise UserError(
        f"regularizers.{name}: its term is {found}, expected a tensor (lanes, time) = "
        f"{tuple(weight.shape)}, or a scalar"
    )


def _sums(loss: Tensor, nll: Tensor, terms: Sequence[Tensor], window: Window) -> Tensor:
    """The sums over a window's targets of the nll, the whole loss and each term."""
    num_targets, weight = window.mask.sum(), window.weight.sum()
    # The loss is weighted already; a window without targets has a weight of 0.
    whole = torch.where(num_targets > 0, loss.detach() * num_targets / weight, 0)
    return torch.stack([nll, whole, *((term.detach() * window.mask).sum() for term in terms)])
