"""The probabilities of an n-gram model, as sorted arrays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Tables:
    """An n-gram model with backoff: p(w | h) is that of the n-gram hw where it is there, else the
    backoff weight of h, if that is there, times p(w | h without its first symbol).

    A symbol is a token, or `vocabulary_size` for the beginning of a text. The id of a symbol is
    itself, that of a longer n-gram its rank among the keys of its order: the id of its first n - 1
    symbols x (vocabulary_size + 1) + its last one.

    keys: of the orders from 2 on, ascending. log_prob: of all orders, in nats, by id; of order 1
    without the beginning, which is no target. log_backoff: of all orders but the highest, in nats.
    """

    vocabulary_size: int
    keys: tuple[Integers, ...]
    log_prob: tuple[Floats, ...]
    log_backoff: tuple[Floats, ...]

    @property
    def order(self) -> int:
        """The length of the longest n-grams."""
        return len(self.log_prob)

    @property
    def base(self) -> int:
        """The number of symbols."""
        return self.vocabulary_size + 1

    @property
    def sizes(self) -> list[int]:
        """The number of n-grams of each order; of order 1 the beginning counts too."""
        return [self.base, *map(len, self.keys)]

    def spelled(self, order: int, begin: int = 0, end: int | None = None) -> Integers:
        """The symbols of the n-grams of an order with these ids, (n-grams, order)."""
        ids = np.arange(self.sizes[order - 1])[begin:end]
        columns = []
        for keys in reversed(self.keys[: order - 1]):
            ids, last = np.divmod(keys[ids], self.base)
            columns.append(last)
        return np.stack([ids, *reversed(columns)], axis=1)

    def state(self) -> dict[str, Tensor]:
        """The state dict of the head that looks them up."""
        arrays: dict[str, npt.NDArray[Any]]
        arrays = {f"keys_{n}": each for n, each in enumerate(self.keys, start=2)}
        arrays |= {f"log_prob_{n}": each for n, each in enumerate(self.log_prob, start=1)}
        arrays |= {f"log_backoff_{n}": each for n, each in enumerate(self.log_backoff, start=1)}
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    @classmethod
    def of(cls, state: Mapping[str, Tensor], vocabulary_size: int) -> Self:
        """The tables of which `state` is the state dict."""
        order = sum(name.startswith("log_prob_") for name in state)

        def arrays(name: str, first: int, last: int) -> Any:
            return tuple(state[f"{name}_{n}"].numpy() for n in range(first, last + 1))

        return cls(
            vocabulary_size,
            arrays("keys", 2, order),
            arrays("log_prob", 1, order),
            arrays("log_backoff", 1, order - 1),
        )
