"""What a recurrent net does with a window as one CUDA graph: one launch instead of hundreds.

It is many small kernels, whose launches take the host longer than the card takes to compute them.
They are the same for each window of one shape: captured once, they are launched together (Gray
2019, "Getting Started with CUDA Graphs"), with the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Generic, TypeVar

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from lmkit import kernels
from lmkit.head import Head
from lmkit.model import States
from lmkit.model.dropout import Masks, Name
from lmkit.windows import Window

AFTER = 10  # windows of one shape, one after the other, before it is captured
SETTINGS = (bool, int, float, str, tuple)  # of a part: what its kernels may follow from
TENSORS = ("tokens", "targets", "resets", "mask", "weight")  # of a window

Result = TypeVar("Result")
Function = Callable[[Window, States], Result]


def capturable(module: pl.LightningModule, parts: Sequence[object]) -> bool:
    """Whether a module's windows may be captured: on one card, without a loss scaler, if what its
    parts compute is known to follow from a window's tensors alone, and the kernels from its
    shape."""
    if not kernels.graphs() or module.device.type != "cuda":
        return False
    return (
        module.trainer.world_size == 1
        and getattr(module.trainer.precision_plugin, "scaler", None) is None
        and all(_is_capturable(type(part)) for part in parts)
    )


def _is_capturable(kind: type) -> bool:
    """What a class says of itself; of classes that say nothing, PyTorch's and lmkit's are."""
    known = kind.__module__.startswith(("torch.nn.", "lmkit."))
    return bool(vars(kind).get("capturable", known))


class Graph(Generic[Result]):
    """A function of a window and the state before it, captured for the shape that windows have."""

    def __init__(self, function: Function[Result], head: Head, parts: Sequence[object]) -> None:
        """function: of tensors alone, in which it changes nothing. parts: whose parameters and
        settings it reads."""
        self.function = function
        self.head = head
        self.parts = parts
        self._shape: torch.Size | None = None  # of the last window
        self._count = 0  # of windows of this shape, one after the other
        self._captured: Captured[Result] | None = None

    def __call__(self, window: Window, state: States, masks: Masks | None) -> Result | None:
        """What the function returns, of which the next call makes something else; or None if the
        shape is not captured. masks: of dropout."""
        shape = window.tokens.shape
        self._shape, self._count = shape, self._count + 1 if shape == self._shape else 1
        if self._captured and not self._captured.is_current():
            self._captured, self._count = None, 1
        if self._captured is None or self._captured.shape != shape:
            if self._count < AFTER:
                return None
            self._captured = None  # its memory is free for the next one
            self._captured = Captured(self._alone, self.parts, window, state, masks)
        return self._captured.replay(window, state, masks)

    def _alone(self, window: Window, state: States) -> Result:
        """The function, in memory that is the graph's: what others keep may be gone at a replay."""
        with self.head.fresh_memory():
            return self.function(window, state)


class Captured(Generic[Result]):
    """A function of windows of one shape as a CUDA graph, and its tensors."""

    def __init__(
        self,
        function: Function[Result],
        parts: Sequence[object],
        window: Window,
        state: States,
        masks: Masks | None,
    ) -> None:
        """function and parts: as `Graph` has them; the others as in `replay`."""
        self.shape = window.tokens.shape
        self._parts = parts
        self._known = self._known_now()
        self._window = window._replace(**{name: getattr(window, name).clone() for name in TENSORS})
        self._state = tuple(tuple(part.clone() for part in layer) for layer in state)
        self._masks: KeptMasks | None = None
        if masks:
            self._masks = KeptMasks(*masks.of, masks.first_lane, masks.num_lanes)
        self._graph, self._result = capture(lambda: self._compute(function))

    def _compute(self, function: Function[Result]) -> Result:
        # Casts that autocast has kept are of the weights before an update.
        torch.clear_autocast_cache()
        with self._masks.use() if self._masks else nullcontext():
            result = function(self._window, self._state)
        torch.clear_autocast_cache()
        return result

    def is_current(self) -> bool:
        """Whether the weights are where they were, the same of them are trained, and all settings
        are the same."""
        return self._known_now() == self._known

    def _known_now(self) -> list[object]:
        known: list[object] = []
        for part in self._parts:
            known += [value for value in vars(part).values() if isinstance(value, SETTINGS)]
            if isinstance(part, nn.Module):
                own = part.parameters(recurse=False)
                known += [(parameter.data_ptr(), parameter.requires_grad) for parameter in own]
        return known

    def replay(self, window: Window, state: States, masks: Masks | None) -> Result:
        """The function's result for a window and the state before it, with masks of dropout."""
        for name in TENSORS:
            getattr(self._window, name).copy_(getattr(window, name))
        for layer, before in zip(self._state, state, strict=True):
            for part, value in zip(layer, before, strict=True):
                part.copy_(value)
        if self._masks and masks:
            self._masks.redraw(masks)
        self._graph.replay()
        return self._result


def gradients(loss: Tensor, parameters: Sequence[nn.Parameter]) -> list[Tensor | None]:
    """The gradients of a loss, as many as parameters, each in memory of its own."""
    with torch.autocast(loss.device.type, enabled=False):  # as Lightning's backward is
        made = torch.autograd.grad(loss, parameters, allow_unused=True)
    return _apart(made)


def _apart(gradients: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Each in memory of its own, as an update may change them: autograd gives the same tensor to
    all terms of a sum."""
    taken: set[int] = set()
    own = []
    for gradient in gradients:
        if gradient is not None:
            if gradient.data_ptr() in taken or not gradient.is_contiguous():
                gradient = gradient.clone(memory_format=torch.contiguous_format)
            taken.add(gradient.data_ptr())
        own.append(gradient)
    return own


def capture(function: Callable[[], Result]) -> tuple[torch.cuda.CUDAGraph, Result]:
    """A graph of a function's kernels, and the result, whose tensors each replay fills anew."""
    beside = torch.cuda.Stream()
    beside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(beside):
        function()  # what is made at a first call is not to be captured
    torch.cuda.current_stream().wait_stream(beside)
    graph = torch.cuda.CUDAGraph()
    # The threads that read ahead may use the card meanwhile.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        result = function()
    return graph, result


class KeptMasks(Masks):
    """Masks of dropout that stay where they are in memory, to be drawn anew for each window."""

    def __init__(self, *place: int | None) -> None:
        super().__init__(*place)  # type: ignore[arg-type]
        self._kept: dict[tuple[Name, float, torch.Size, torch.dtype], Tensor] = {}

    def drawn(self, name: Name, p: float, like: Tensor, rows: int) -> Tensor:
        kind = (name, p, torch.Size((rows, *like.shape[1:])), like.dtype)
        if kind not in self._kept:
            self._kept[kind] = super().drawn(name, p, like, rows)
        return self._kept[kind]

    def redraw(self, masks: Masks) -> None:
        """Fill them with those of another window."""
        self.of = masks.of
        for (name, p, *_), mask in self._kept.items():
            self.draw(mask, name, p)
