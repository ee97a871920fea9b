"""Looks up the probabilities of n-grams."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from lmkit.head.base import Head, Loss

# Log-probabilities that exist at once.
VALUES = 12 * 2**20


class NGramTables(Head):
    """The tables of n-grams (`lmkit.ngrams.Tables`), looked up by contexts.

    Its hidden vectors are the contexts of `lmkit.model.NGram`, of hidden_size symbols. Before
    anything is counted, or loaded, all tokens are equally likely.
    """

    any_threads = True
    counted = True

    def __init__(self, hidden_size: int, vocabulary_size: int) -> None:
        super().__init__()
        self.order = hidden_size + 1
        self.vocabulary_size = vocabulary_size
        self.base = vocabulary_size + 1
        uniform = torch.zeros(vocabulary_size) - torch.tensor(vocabulary_size).log()
        for order in range(1, self.order + 1):
            values = uniform if order == 1 else torch.zeros(0)
            self._hold(f"log_prob_{order}", values)
            if order > 1:
                self.register_buffer(f"keys_{order}", torch.zeros(0, dtype=torch.int64))
            if order < self.order:
                self._hold(f"log_backoff_{order}", torch.zeros(self.base if order == 1 else 0))

    def _hold(self, name: str, values: Tensor) -> None:
        """A parameter, so that it is counted as one, that has no gradient."""
        self.register_parameter(name, nn.Parameter(values, requires_grad=False))

    def _load_from_state_dict(
        self, state_dict: dict[str, Tensor], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        """Take the sizes of the tables that are loaded."""
        held = [*self.named_parameters(recurse=False), *self.named_buffers(recurse=False)]
        for name, tensor in held:
            loaded = state_dict.get(prefix + name)
            if loaded is not None and loaded.dim() == 1 and name != "log_prob_1":
                tensor.data = tensor.new_empty(len(loaded))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def loss(self, hidden: Tensor, targets: Tensor, weight: Tensor) -> Loss:
        """Refused: n-grams are counted."""
        raise TypeError("n-grams have no loss to minimise: they are counted")

    def nll(self, hidden: Tensor, targets: Tensor) -> Tensor:
        target = targets.flatten()
        log_prob = self._part("log_prob", 1)[target]
        for length, context in enumerate(self._contexts(hidden.flatten(0, 1)), start=1):
            ngram = self._find(length + 1, context, target)
            backed_off = log_prob + self._value("log_backoff", length, context)
            known = self._value("log_prob", length + 1, ngram)
            log_prob = torch.where(ngram >= 0, known, backed_off)
        return -log_prob.view_as(targets)

    def log_prob(self, hidden: Tensor) -> Iterator[Tensor]:
        for symbols in hidden.flatten(0, 1).split(max(VALUES // self.vocabulary_size, 1)):
            contexts = self._contexts(symbols)
            backoffs = [
                self._value("log_backoff", length, context)
                for length, context in enumerate(contexts, start=1)
            ]
            # Of each length: the backoff weights of all longer contexts.
            beyond = [symbols.new_zeros(len(symbols), dtype=torch.float32)]
            for backoff in reversed(backoffs):
                beyond.append(beyond[-1] + backoff)
            log_prob = self._part("log_prob", 1) + beyond.pop()[:, None]
            for length, context in enumerate(contexts, start=1):
                row, ngram = self._following(length, context)
                token = self._part("keys", length + 1)[ngram] % self.base
                known = self._part("log_prob", length + 1)[ngram]
                log_prob[row, token] = known + beyond.pop()[row]
            yield log_prob

    def _part(self, name: str, order: int) -> Tensor:
        tensor: Tensor = getattr(self, f"{name}_{order}")
        return tensor

    def _contexts(self, symbols: Tensor) -> list[Tensor]:
        """symbols (n, hidden_size) -> of each length from 1 on the ids (n) of the last so many
        symbols, -1 where such an n-gram is not there."""
        contexts = []
        for length in range(1, self.order):
            first, *others = symbols[:, -length:].unbind(1)
            context = first
            for order, symbol in enumerate(others, start=2):
                context = self._find(order, context, symbol)
            contexts.append(context)
        return contexts

    def _find(self, order: int, prefix: Tensor, last: Tensor) -> Tensor:
        """The ids of n-grams by the ids of their prefixes and their last symbols, -1 where one of
        these is -1 or the n-gram is not there."""
        keys = self._part("keys", order)
        if not len(keys):
            return torch.full_like(prefix, -1)
        wanted = (prefix * self.base + last).masked_fill((prefix < 0) | (last < 0), -1)
        found = torch.searchsorted(keys, wanted).clamp_max(len(keys) - 1)
        return torch.where(keys[found] == wanted, found, -1)

    def _value(self, name: str, order: int, ids: Tensor) -> Tensor:
        """The values of n-grams by their ids, 0 where an id is -1."""
        values = self._part(name, order)
        if not len(values):
            return values.new_zeros(len(ids))
        return torch.where(ids >= 0, values[ids.clamp_min(0)], 0)

    def _following(self, length: int, context: Tensor) -> tuple[Tensor, Tensor]:
        """All n-grams that begin with one of the contexts (n): the number of the context, and the
        id of the n-gram."""
        keys = self._part("keys", length + 1)
        known = context.clamp_min(0)
        begin = torch.searchsorted(keys, known * self.base)
        end = torch.searchsorted(keys, (known + 1) * self.base)
        count = torch.where(context >= 0, end - begin, 0)
        row = torch.arange(len(context), device=keys.device).repeat_interleave(count)
        first = (begin - (count.cumsum(0) - count))[row]
        return row, first + torch.arange(len(row), device=keys.device)
