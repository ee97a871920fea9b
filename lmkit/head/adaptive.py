"""The adaptive softmax: frequent words in one softmax, rare ones in clusters behind it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Annotated, Any, NamedTuple

import torch
import torch.nn.functional as F
from annotated_types import Ge
from torch import Tensor, nn

from lmkit.errors import UserError
from lmkit.head.base import Head, Loss
from lmkit.head.linear_cross_entropy import LinearCrossEntropy, Memory
from lmkit.head.linear_softmax import linear_log_prob, linear_nll, rows_at_once
from lmkit.head.tied_clusters import TiedClusters
from lmkit.model import Embedding
from lmkit.model.embedding import draw
from lmkit.ranges import Positive, Size

SHORTEST = 2000  # a shortlist is not cut down below this, except that there is always one cluster
OWN_DIV_VALUE = 4.0  # of the paper's experiments


class AdaptiveSoftmax(Head):
    """p(w) = p(w | h) for the words of a shortlist, p(w) = p(cluster | h) p(w | cluster, h) for the
    others (Grave et al. 2017, arXiv:1609.04309, section 4.3): a position whose target is in the
    shortlist never looks at the clusters. So frequent words must be there: words are ordered by
    how often they are in the train split, whatever their ids.

    Cluster i has a matrix over P_i h, P_i of hidden_size / div_value^i rows, and the shortlist one
    over h, which start as in `FullSoftmax`; P_i starts from N(0, 1 / hidden_size). Tied, they are
    rows of the embedding, and each cluster adds one vector to the shortlist, which starts from 0
    (the "tombstones" of Merity et al. 2018's awd-lstm-lm). Without `cutoffs` a quarter of the
    vocabulary is no rare word, of these again a quarter, and so on while that is 2,000 or more.

    cutoffs: words of the shortlist, of it with the first cluster, and so on; null: chosen by the
    vocabulary, as 4183, 16733, 66933 of 267,735 words.
    div_value: how many times smaller each cluster's vectors are than those before; 1: no
    projection, as tied weights need it; null: 4, or 1 with tied weights.
    bias: whether each word and cluster has one.
    chunk_size: positions whose logits exist at a time; null: chosen by the number of words.
    """

    wants_counts = True
    token_rows = None
    capturable = False  # sizes of products follow from values

    def __init__(
        self,
        hidden_size: int,
        vocabulary_size: int,
        embedding: Embedding | None = None,
        init_range: Positive | None = None,
        *,
        cutoffs: list[Size] | None = None,
        div_value: Annotated[float, Ge(1)] | None = None,
        bias: bool = True,
        chunk_size: Size | None = None,
    ) -> None:
        super().__init__()
        self.cutoffs = check_cutoffs(cutoffs, vocabulary_size)
        ends = [*self.cutoffs, vocabulary_size]
        self.sizes = [stop - start for start, stop in pairwise([0, *ends])]  # shortlist, clusters..
        self.tied = embedding is not None and embedding.tied
        if self.tied and div_value not in (None, 1):
            raise UserError(untied_only(div_value))
        self.div_value = div_value or (1.0 if self.tied else OWN_DIV_VALUE)
        # On compiled kernels; the products with P_i are PyTorch's.
        self.any_threads = self.div_value == 1
        self._chunk_size = chunk_size
        self._memory = Memory()  # of a tied matrix
        self._memories = [Memory(beside=self._memory) for _ in self.sizes]
        self._set_order(torch.arange(vocabulary_size, device="cpu"))
        if embedding is not None and embedding.tied:
            self.weight = embedding.weight
            self._matrix = embedding.matrix
            self._init_tied(hidden_size, bias)
        else:
            self._init_own(hidden_size, init_range, bias)

    def _init_tied(self, hidden_size: int, bias: bool) -> None:
        clusters = len(self.cutoffs)
        self.tombstones = nn.Parameter(torch.zeros(clusters, hidden_size))
        self.bias = nn.Parameter(torch.zeros(sum(self.sizes))) if bias else None
        self.tombstone_bias = nn.Parameter(torch.zeros(clusters)) if bias else None

    def _init_own(self, hidden_size: int, init_range: float | None, bias: bool) -> None:
        rows = [self.sizes[0] + len(self.cutoffs), *self.sizes[1:]]
        widths = [max(int(hidden_size // self.div_value**i), 1) for i in range(len(rows))]
        shapes = list(zip(rows, widths, strict=True))
        self.weights = nn.ParameterList(torch.empty(*shape) for shape in shapes)
        self.biases = nn.ParameterList(torch.zeros(n) for n in rows) if bias else None
        self.projections = nn.ParameterList()
        for weight, (_, width) in zip(self.weights, shapes, strict=True):
            draw(weight, width**-0.5, init_range)
        if self.div_value != 1:
            for width in widths[1:]:
                self.projections.append(
                    torch.empty(width, hidden_size).normal_(0, hidden_size**-0.5)
                )

    @staticmethod
    def mistakes(config: Mapping[str, Any], at: str) -> list[str]:
        """Mistakes that show only when the values are compared with one another."""
        return out_of_order(config["cutoffs"] or [], at)

    @staticmethod
    def misfits(config: Mapping[str, Any], vocabulary_size: int | None) -> list[str]:
        """Contradictions between the head's keys and what is beside them, a sentence each."""
        div_value, cutoffs = (config["head"].get(key) for key in ("div_value", "cutoffs"))
        if (config.get("model") or {}).get("tie_weights") and div_value not in (None, 1):
            return [untied_only(div_value)]
        if vocabulary_size and cutoffs and cutoffs[-1] >= vocabulary_size:
            return [too_high(cutoffs, vocabulary_size)]
        return []

    # ---- the order of words

    def learn_counts(self, counts: Tensor) -> None:
        """Order the words by float64 counts (vocabulary), those of equal counts by their ids."""
        self._set_order(counts.argsort(descending=True, stable=True))

    def _set_order(self, order: Tensor) -> None:
        """order: int64 (vocabulary), the ids by frequency, on the CPU. It is no buffer: averages of
        weights would average it, and processes would send it to each other at each step."""
        ids = torch.arange(len(order), device="cpu")
        self.is_ordered = torch.equal(order, ids)
        self._orders = {"cpu": (order, torch.empty_like(order).scatter_(0, order, ids))}

    def get_extra_state(self) -> Tensor:
        """The ids by frequency, int32 (vocabulary), which belong to the weights."""
        return self._orders["cpu"][0].int()

    def set_extra_state(self, state: Tensor) -> None:
        """state: as `get_extra_state` has it."""
        if len(state) == sum(self.sizes):  # else the weights do not fit either, which is told
            self._set_order(state.to("cpu", torch.int64))

    def _order(self) -> tuple[Tensor, Tensor] | None:
        """The ids by frequency and the place of each id among them, both int64 (vocabulary), on the
        weights' device; None: the ids are in order."""
        if self.is_ordered:
            return None
        device = next(self.parameters()).device
        if str(device) not in self._orders:
            order, places = self._orders["cpu"]
            with torch.inference_mode(False):  # autograd saves them for backward later
                self._orders[str(device)] = (order.to(device), places.to(device))
        return self._orders[str(device)]

    # ---- matrices

    def num_multiplied(self) -> float:
        """The weights of a cluster count in the share of targets that it has by Zipf's law."""
        matrices = self.weight.split(self.sizes) if self.tied else tuple(self.weights)
        projections = () if self.tied else tuple(self.projections)
        number, ends = float(matrices[0].numel()), list(accumulate(self.sizes))
        for index, (start, stop) in enumerate(pairwise(ends)):
            share = math.log((stop + 1) / (start + 1)) / math.log(ends[-1] + 1)
            projection = projections[index].numel() if projections else 0
            number += share * (matrices[index + 1].numel() + projection)
        return number

    def _parts(self) -> list[tuple[Tensor, Tensor | None]]:
        """The matrix (rows, width) and bias (rows) of the shortlist, with a row for each cluster at
        its end, and of each cluster."""
        if not self.tied:
            biases = self.biases or [None] * len(self.sizes)
            return list(zip(self.weights, biases, strict=True))
        order = self._order()
        matrix = self.weight if order is None else self.weight[order[0]]
        first, *tails = matrix.split(self.sizes)
        return self._with_biases([torch.cat([first, self.tombstones]), *tails])

    def _with_biases(self, matrices: Sequence[Tensor]) -> list[tuple[Tensor, Tensor | None]]:
        if self.bias is None or self.tombstone_bias is None:
            return [(matrix, None) for matrix in matrices]
        order = self._order()
        first, *tails = (self.bias if order is None else self.bias[order[0]]).split(self.sizes)
        return list(zip(matrices, [torch.cat([first, self.tombstone_bias]), *tails], strict=True))

    def _parts_for_loss(self) -> list[tuple[Tensor, Tensor | None]]:
        """As `_parts`; the gradients by rows of a tied matrix come to lie in one tensor."""
        if not (self.tied and torch.is_grad_enabled()):
            return self._parts()
        order = self._order()
        rows = (self._matrix(), self.tombstones, None if order is None else order[0], self.sizes)
        return self._with_biases(TiedClusters.apply(*rows, self._memory, self._memories))

    def _inputs(self, index: int, hidden: Tensor) -> Tensor:
        """Hidden vectors (rows, hidden_size) as the matrix of a cluster multiplies them."""
        if self.tied or self.div_value == 1 or index == 0:
            return hidden
        return F.linear(hidden, self.projections[index - 1])

    def _rows(self, matrix: Tensor) -> int:
        return rows_at_once(matrix, self._chunk_size)

    def keep_gradient(self) -> None:
        if self.tied:
            self._memory.gradient, self.weight.grad = self.weight.grad, None
            return
        for memory, weight in zip(self._memories, self.weights, strict=True):
            memory.gradient, weight.grad = weight.grad, None

    # ---- losses and probabilities

    def _divided(self, targets: Tensor, weight: Tensor | None = None) -> _Divided:
        """Targets (rows) by where they are; weight (rows): 0 where there is none to look at. The
        sizes of the parts are the one thing for which the host waits for an accelerator."""
        order = self._order()
        place = targets if order is None else order[1][targets]
        cluster, start = torch.zeros_like(place), torch.zeros_like(place)  # start: of its words
        for begin in self.cutoffs:
            cluster += place >= begin
            start = start.masked_fill(place >= begin, begin)
        first = torch.where(cluster == 0, place, self.sizes[0] + cluster - 1)
        looked_at = cluster if weight is None else torch.where(weight != 0, cluster, 0)
        counts = torch.bincount(looked_at, minlength=len(self.sizes)).tolist()
        _, *rows = looked_at.argsort(stable=True).split(counts)
        return _Divided(first, rows, [(place - start)[at] for at in rows])

    def loss(self, hidden: Tensor, targets: Tensor, weight: Tensor) -> Loss:
        hidden, weight = hidden.flatten(0, 1), weight.flatten()
        divided = self._divided(targets.flatten(), weight)
        parts = self._parts_for_loss()

        def one(index: int, hidden: Tensor, targets: Tensor, weight: Tensor) -> Loss:
            matrix, bias = parts[index]
            rows = (self._inputs(index, hidden), matrix, bias, targets, weight)
            settings = (self._rows(matrix), self._memories[index])
            return Loss(*LinearCrossEntropy.apply(*rows, *settings))

        losses = [one(0, hidden, divided.first, weight)]
        for index, (at, target) in enumerate(divided.clusters(), start=1):
            losses.append(one(index, hidden[at], target, weight[at]))
        return Loss(*(torch.stack(each).sum() for each in zip(*losses, strict=True)))

    def nll(self, hidden: Tensor, targets: Tensor) -> Tensor:
        hidden, shape = hidden.flatten(0, 1), targets.shape
        divided = self._divided(targets.flatten())
        parts = self._parts()

        def one(index: int, hidden: Tensor, targets: Tensor) -> Tensor:
            matrix, bias = parts[index]
            inputs = self._inputs(index, hidden)
            return linear_nll(inputs, matrix, bias, targets, self._rows(matrix))

        nll = one(0, hidden, divided.first)
        for index, (at, target) in enumerate(divided.clusters(), start=1):
            nll = nll.index_add(0, at, one(index, hidden[at], target))
        return nll.view(shape)

    def log_prob(self, hidden: Tensor) -> Iterator[Tensor]:
        parts, order = self._parts(), self._order()
        words = parts[0][0].new_empty(sum(self.sizes), 0)
        size = rows_at_once(words, self._chunk_size)
        for rows in hidden.flatten(0, 1).split(size):
            by_part = [
                next(linear_log_prob(self._inputs(index, rows), *part, len(rows)))
                for index, part in enumerate(parts)
            ]
            first, clusters = by_part[0].split([self.sizes[0], len(self.cutoffs)], dim=1)
            tails = [
                tail + cluster[:, None]
                for tail, cluster in zip(by_part[1:], clusters.unbind(1), strict=True)
            ]
            log_prob = torch.cat([first, *tails], dim=1)
            yield log_prob if order is None else log_prob[:, order[1]]

    def extra_repr(self) -> str:
        """The sizes that are chosen where they are not given."""
        return f"cutoffs={_listed(self.cutoffs)}, div_value={self.div_value:g}, tied={self.tied}"


class _Divided(NamedTuple):
    """Targets by cluster. first: int64 (rows), the row of the shortlist's matrix. rows, targets:
    int64, of each cluster, the positions whose target it has, and the row of its matrix."""

    first: Tensor
    rows: Sequence[Tensor]
    targets: Sequence[Tensor]

    def clusters(self) -> Iterator[tuple[Tensor, Tensor]]:
        return zip(self.rows, self.targets, strict=True)


def check_cutoffs(cutoffs: Sequence[int] | None, vocabulary_size: int) -> list[int]:
    """The cutoffs, which have their default for None; UserError if they do not rise, or if the
    vocabulary is smaller."""
    if cutoffs is None:
        found = [max(vocabulary_size // 4, 1)] if vocabulary_size > 1 else []
        while found and found[0] // 4 >= SHORTEST:
            found.insert(0, found[0] // 4)
        return found
    if wrong := out_of_order(cutoffs):
        raise UserError(wrong[0])
    if cutoffs and cutoffs[-1] >= vocabulary_size:
        raise UserError(too_high(cutoffs, vocabulary_size))
    return list(cutoffs)


def out_of_order(cutoffs: Sequence[int], at: str = "head") -> list[str]:
    """The mistake of cutoffs that do not rise, if they do not."""
    if any(after <= before for before, after in pairwise(cutoffs)):
        return [f"{at}.cutoffs={_listed(cutoffs)}: each must be above the one before"]
    return []


def too_high(cutoffs: Sequence[int], vocabulary_size: int) -> str:
    """The mistake of cutoffs beyond the vocabulary."""
    return (
        f"head.cutoffs={_listed(cutoffs)}: the vocabulary has {vocabulary_size:,} tokens, and the "
        "last cutoff must be below that; lower it, or leave head.cutoffs out"
    )


def untied_only(div_value: float | None) -> str:
    """The mistake of a projection of tied weights."""
    return (
        f"head.div_value={div_value:g} but model.tie_weights=true: rows of a tied matrix have the "
        "size of the hidden vector; set head.div_value=1, or model.tie_weights=false"
    )


def _listed(numbers: Sequence[int]) -> str:
    return f"[{','.join(map(str, numbers))}]"
