"""The surprisals of the regions of many sentences, each from the zero state after `<eos>`."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lmkit.errors import UserError
from lmkit.inference import Text, TrainedModel
from lmkit.model import Output
from lmkit.system.progress import progress
from lmkit.tokenizer import Tokenizer
from lmkit.windows import Window, WindowLoader

NUM_LANES = 128
POSITIONS = 8192
NO_SPACE = re.compile(r"\S")

Integers = npt.NDArray[np.int64]


class Sums(NamedTuple):
    """Of one sentence: the surprisal of each region in bits, and whether a word is unknown."""

    bits: tuple[float, ...]
    has_unknown: bool


class Sequences(NamedTuple):
    """Different sequences of token ids, one after the other, each without its closing `<eos>` if
    that does not count; `ends` (sequences,) are exclusive."""

    ids: npt.NDArray[np.uint32]
    ends: Integers

    @property
    def starts(self) -> Integers:
        return np.append(0, self.ends[:-1])


def region_sums(
    trained: TrainedModel, sentences: Sequence[tuple[str, ...]], end: bool = False
) -> list[Sums]:
    """The sums of each sentence, which is given as its regions.

    A sentence is its regions that are not empty, joined by a space. A token belongs to the region
    of its first character that is no space. end: whether the closing `<eos>` counts, which then
    belongs to the last region.
    """
    places: dict[tuple[str, ...], int] = {}
    for sentence in sentences:
        places.setdefault(sentence, len(places))
    texts = [" ".join(filter(None, regions)) for regions in places]
    encoded, rows = encode(trained.tokenizer, texts, end)
    bits = token_nlls(trained, encoded) / math.log(2)
    unknown = _unknown(trained.tokenizer, encoded)
    starts = encoded.starts
    sums = []
    for regions, text, row in zip(places, texts, rows, strict=True):
        tokens = slice(starts[row], encoded.ends[row])
        of_text = bits[tokens].tolist()
        if len(regions) == 1:
            found: tuple[float, ...] = (math.fsum(of_text),)
        else:
            by_region: list[list[float]] = [[] for _ in regions]
            spans = trained.tokenizer.spans(text, by_line=True)
            for value, region in zip(of_text, regions_of(spans, text, regions), strict=False):
                by_region[region].append(value)
            # Rounded once, so that equal surprisals have equal sums.
            found = tuple(map(math.fsum, by_region))
        sums.append(Sums(found, unknown[row]))
    return [sums[places[sentence]] for sentence in sentences]


def has_unknown(tokenizer: Tokenizer, sentences: Sequence[tuple[str, ...]]) -> list[bool]:
    """Whether each sentence has a word that is not in the vocabulary."""
    encoded, rows = encode(tokenizer, [" ".join(filter(None, each)) for each in sentences], False)
    unknown = _unknown(tokenizer, encoded)
    return [unknown[row] for row in rows]


def _unknown(tokenizer: Tokenizer, encoded: Sequences) -> list[bool]:
    """Whether each sequence has an unknown token."""
    upto = np.append(0, np.cumsum(encoded.ids == tokenizer.unk_id))
    return (upto[encoded.ends] > upto[encoded.starts]).tolist()


def regions_of(spans: Sequence[tuple[int, int]], text: str, regions: Sequence[str]) -> list[int]:
    """The index of the region to which each token belongs, by the spans of the tokens in the text
    of the regions."""
    widths = [len(region) + 1 if region else 0 for region in regions]
    stops = list(accumulate(widths))  # after the space that follows each region
    last = max((index for index, region in enumerate(regions) if region), default=0)
    found = []
    for start, _ in spans:
        first = NO_SPACE.search(text, start)
        inside = (i for i, stop in enumerate(stops) if first and first.start() < stop)
        found.append(next(inside, last))
    return found


def encode(tokenizer: Tokenizer, texts: Sequence[str], end: bool) -> tuple[Sequences, list[int]]:
    """The different sequences of ids of texts, and for each text the number of its own.

    Raises UserError for a text that holds an `<eos>`.
    """
    encoded = tokenizer.encode(texts, by_line=True)
    starts = np.append(0, encoded.document_ends[:-1])
    stops = encoded.document_ends - (0 if end else 1)
    inner = encoded.ids == tokenizer.eos_id
    inner[encoded.document_ends - 1] = False
    if inner.any():
        which = int(np.searchsorted(encoded.document_ends, np.flatnonzero(inner)[0], side="right"))
        raise UserError(f"{texts[which]!r} holds the token that ends a sentence: leave it out")
    numbers: dict[bytes, int] = {}
    parts = [np.empty(0, np.uint32)]
    rows = []
    for start, stop in zip(starts.tolist(), stops.tolist(), strict=True):
        ids = encoded.ids[start:stop]
        row = numbers.setdefault(ids.tobytes(), len(numbers))
        if row == len(parts) - 1:
            parts.append(ids)
        rows.append(row)
    ends = np.cumsum([len(part) for part in parts[1:]], dtype=np.int64)
    return Sequences(np.concatenate(parts), ends), rows


def token_nlls(trained: TrainedModel, encoded: Sequences) -> npt.NDArray[np.float64]:
    """The nll in nats of each token of the sequences.

    It depends on the tokens before it in its sequence only: where sequences begin alike, it is
    computed once, so that what must be equal is equal to the last bit; and one position stands for
    all that have the same tokens before them.
    """
    nll = np.zeros(len(encoded.ids))
    ends = encoded.ends[np.diff(encoded.ends, prepend=0) > 0]  # a unit has a token or more
    if not len(ends):
        return nll
    text = Text(encoded.ids, ends, ends, num_bytes=0, num_unknown=0)
    loader = trained.loader(text, "sentence", min(NUM_LANES, len(ends)), POSITIONS)
    plan = _Plan(encoded, loader)

    def measure(window: Window, output: Output) -> Tensor:
        positions, tokens = plan.window(window)
        at = [torch.from_numpy(each).to(trained.device) for each in (positions, plan.ids[tokens])]
        values = trained.head.nll_at(output.hidden.flatten(0, 1), *at)
        nll[tokens] = values.cpu().numpy()
        return values

    done = 0
    with progress("sentences", len(encoded.ids)) as advance:
        for window, _ in trained.measured(loader, measure):
            done += window.num_targets
            advance(done)
    return nll[plan.alike]


class _Plan:
    """What to compute at which positions of a loader's windows, so that nothing is computed twice.

    alike: for each token the one whose nll it has.
    """

    def __init__(self, encoded: Sequences, loader: WindowLoader) -> None:
        self.ids = encoded.ids.astype(np.int64)
        self.alike, context = first_alike(encoded)
        tokens = np.flatnonzero(self.alike == np.arange(len(self.alike)))
        self._tokens = tokens[np.argsort(context[tokens], kind="stable")]  # by context
        self._contexts = context[self._tokens]
        self._at = loader.lanes(0).tokens
        self._bptt = loader.bptt

    def window(self, window: Window) -> tuple[Integers, Integers]:
        """Positions of a window, in ascending order, and the token whose nll to compute there."""
        rows, time = window.tokens.shape
        begin = window.index * self._bptt
        here = self._at[:rows, begin : begin + time].flatten()
        first = np.searchsorted(self._contexts, here)
        counts = np.searchsorted(self._contexts, here, side="right") - first
        positions = np.repeat(np.arange(len(here)), counts)
        within = np.arange(len(positions)) - np.repeat(np.cumsum(counts) - counts, counts)
        return positions, self._tokens[first[positions] + within]


def first_alike(encoded: Sequences) -> tuple[Integers, Integers]:
    """For each token, of any sequence, the first one up to which the tokens are the same, and the
    first one before which they are the same."""
    starts, lengths = encoded.starts, np.diff(encoded.ends, prepend=0)
    alike, context = np.empty((2, len(encoded.ids)), np.int64)
    numbers = np.flatnonzero(lengths)
    before = np.zeros(len(numbers), np.int64)  # the same for sequences that began alike
    depth = 0
    while len(numbers):
        at = starts[numbers] + depth
        _, first, inverse = np.unique(before, return_index=True, return_inverse=True)
        context[at] = at[first][inverse]
        pairs = before << 32 | encoded.ids[at].astype(np.int64)
        _, first, inverse = np.unique(pairs, return_index=True, return_inverse=True)
        alike[at] = at[first][inverse]
        depth += 1
        longer = lengths[numbers] > depth
        numbers, before = numbers[longer], inverse[longer]
    return alike, context
