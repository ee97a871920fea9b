"""The base of heads over one matrix, which may be the embedding's own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from lmkit.head.base import Head
from lmkit.head.linear_cross_entropy import Memory
from lmkit.head.linear_softmax import rows_at_once
from lmkit.model import Embedding
from lmkit.model.embedding import draw
from lmkit.ranges import Positive, Size


class MatrixHead(Head):
    """A head with a row of `weight` for each word: the embedding's where that is tied, else a
    matrix of its own, which starts from U(-init_range, init_range), or without init_range from
    N(0, 1 / size) (LeCun et al. 1998, equation 16). Its size is hidden_size, or, of a head that
    `projects`, the embedding's.

    bias: whether each word has one.
    chunk_size: vectors whose logits exist at a time; null: chosen by the vocabulary.
    """

    def __init__(
        self,
        hidden_size: int,
        vocabulary_size: int,
        embedding: Embedding | None = None,
        init_range: Positive | None = None,
        *,
        bias: bool = True,
        chunk_size: Size | None = None,
    ) -> None:
        super().__init__()
        if embedding is not None and embedding.tied:
            self.weight = embedding.weight
            self._matrix = embedding.matrix
        else:
            size = hidden_size
            if self.projects and embedding is not None:
                size = embedding.embedding_dim
            self.weight = nn.Parameter(torch.empty(vocabulary_size, size))
            draw(self.weight, size**-0.5, init_range)
            self._matrix = lambda: self.weight
        self.bias = nn.Parameter(torch.zeros(vocabulary_size)) if bias else None
        self._chunk_size = chunk_size
        self._memory = Memory()

    def _rows(self) -> int:
        """Of a chunk."""
        return rows_at_once(self.weight, self._chunk_size)

    def keep_gradient(self) -> None:
        self._memory.gradient, self.weight.grad = self.weight.grad, None

    @contextmanager
    def fresh_memory(self) -> Iterator[None]:
        before, self._memory = self._memory, Memory()
        try:
            yield
        finally:
            self._memory = before
