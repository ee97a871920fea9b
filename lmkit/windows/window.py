"""A window of text, and the base class of loaders, which hand out an epoch's windows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple
from typing import Protocol as Interface

import numpy.typing as npt
from torch import Tensor

from lmkit.store import TokenStore
from lmkit.store.shard import MANIFEST, damaged

# Tokens that are read before a memory map gives its pages back: reading the first token of a
# document maps 64 KiB or more, however short the document is.
RELEASE_EVERY = 2**20


class Tokens(Interface):
    """What is read of a text, on disk or in memory.

    tokens: ids, (num_tokens,), an array or what has an array's length, slices and `take`.
    document_ends, line_ends: exclusive token positions, strictly increasing.
    """

    @property
    def tokens(self) -> npt.NDArray[Any]: ...
    @property
    def document_ends(self) -> npt.NDArray[Any]: ...
    @property
    def line_ends(self) -> npt.NDArray[Any]: ...
    @property
    def num_tokens(self) -> int: ...
    def document_id(self, index: int) -> str:
        """The source's name of a document."""

    def release(self) -> None:
        """Free the memory of what was read; it may be read again."""


class Window(NamedTuple):
    """One batch; every tensor is (lanes, time).

    tokens, targets: int64 ids. resets: bool, the state is zero after this position.
    mask: bool, the target counts. weight: float32, the factor of a position's nll in the loss.
    index: number of the window in its epoch; at 0 every lane starts from the zero state.
    num_targets: targets that count in the rows of all processes. num_lanes: rows of all
    processes; in training this process has those from first_lane on. rate: factor of the learning
    rate of the window's update, 1 unless the lengths of windows are drawn.
    """

    tokens: Tensor
    targets: Tensor
    resets: Tensor
    mask: Tensor
    weight: Tensor
    index: int  # type: ignore[assignment]  # hides a method of tuple that nobody calls
    num_targets: int
    epoch: int
    first_lane: int
    num_lanes: int
    rate: float = 1.0


class Passes(ABC):
    """The base class of loaders: iterates over the windows of an epoch and resumes exactly.

    Each iteration is the next epoch, except the first one after `load_state_dict`, which resumes
    where the state was saved.
    """

    def __init__(
        self, texts: Sequence[Tokens], num_windows: int, num_tokens: int, limit: int | None
    ) -> None:
        """num_windows, num_tokens: of each epoch without a limit. limit: its most windows."""
        self.texts = texts
        self._whole = (num_windows, num_tokens)
        num_windows = num_windows if limit is None else min(num_windows, limit)
        self._num_windows = num_windows
        self.epoch = -1  # as if read to its end, so that the first pass is epoch 0
        self.position = num_windows
        self._resumed = False

    def __len__(self) -> int:
        return self._num_windows

    @property
    def epoch_tokens(self) -> int:
        """The number of targets of an epoch; approximate where a limit cuts it short."""
        num_windows, num_tokens = self._whole
        return round(num_tokens * len(self) / num_windows)

    def __iter__(self) -> Iterator[Window]:
        # Lightning may call iter() without ever asking for an item: this is a generator so that
        # nothing happens before the first one.
        if not self._resumed or self.position >= len(self):
            self.epoch += 1
            self.position = 0
        self._resumed = False
        unreleased = 0
        stores = [text for text in self.texts if isinstance(text, TokenStore)]
        for window in self._windows():
            _check_ids(window, stores)
            self.position += 1
            unreleased += window.tokens.numel()
            if unreleased >= RELEASE_EVERY:
                self._release()
                unreleased = 0
            yield window
        self._release()

    def state_dict(self) -> dict[str, Any]:
        """The epoch, and how many of its windows have been handed out."""
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """`ended` true, which a trainer may add, means that the rest of the epoch is left out."""
        self.epoch = state["epoch"]
        self.position = state["position"]
        self._resumed = not state.get("ended", False)

    @abstractmethod
    def document_names(self, epoch: int, index: int) -> list[str]:
        """The sources' names of the documents, in all lanes, that have targets in a window."""

    @abstractmethod
    def _windows(self) -> Iterator[Window]:
        """The windows of the epoch from `position` on, which `__iter__` advances after each."""

    def _release(self) -> None:
        for text in self.texts:
            text.release()


def _check_ids(window: Window, stores: Sequence[TokenStore]) -> None:
    """Refuse ids beyond the stores' vocabulary: opening a store does not read all its tokens."""
    most = max((store.vocabulary_size for store in stores), default=None)
    if most is not None and (highest := int(window.targets.max())) >= most:
        raise damaged(
            stores[0].directory / MANIFEST,
            f"token id {highest} of a vocabulary of {most} in its shards",
        )
