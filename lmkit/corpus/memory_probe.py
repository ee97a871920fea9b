"""A generated source that only a model with memory can predict: two countries, filler, again them.

`kenya peru by train then slowly the two countries kenya peru`: the number of filler words sets how
far the last two words are from their first mention, and nothing in between tells them.
"""

import itertools
import random
from bisect import bisect
from collections.abc import Iterable, Iterator
from itertools import accumulate

from lmkit.corpus.source import Document, Source
from lmkit.errors import UserError
from lmkit.ranges import Seed, Size

COUNTRIES = (
    *("france", "spain", "italy", "japan", "kenya", "peru", "chile", "india"),
    *("egypt", "norway", "ghana", "cuba", "nepal", "oman", "laos", "malta"),
)
FILLER = (
    *("we", "went", "by", "train", "then", "slowly"),
    *("along", "quiet", "roads", "under", "old", "trees"),
)
SENTENCE = ("the", "two", "countries")
NUM_NEEDED = 2
# The distance of a country to its repetition without filler: the other country and the sentence.
SHORTEST = NUM_NEEDED + len(SENTENCE)
_DISTANCE = "/distance="


def probe_documents(
    split: str, *, seed: int, num_documents: int, num_countries: int, distances: range
) -> Iterator[tuple[str, str]]:
    """Id and text of each document. The distances take turns; in train, a distance d is drawn with
    a frequency proportional to 1 / d.

    Memory is learned from near to far: with all distances equally frequent, Elman networks learned
    none. Everything is drawn with `Random.random`, the only method that is the same in all
    versions of Python.
    """
    rng = random.Random(f"{seed}/{split}")
    shares = list(accumulate(1 / distance for distance in distances))
    for index in range(num_documents):
        distance = distances[index % len(distances)]
        if split == "train":
            distance = distances[bisect(shares, rng.random() * shares[-1])]
        first = int(rng.random() * num_countries)
        second = (first + 1 + int(rng.random() * (num_countries - 1))) % num_countries
        pair = (COUNTRIES[first], COUNTRIES[second])
        filler = (FILLER[int(rng.random() * len(FILLER))] for _ in range(distance - SHORTEST))
        text = " ".join((*pair, *filler, *SENTENCE, *pair))
        yield f"{split}/{index}{_DISTANCE}{distance}", text


def probe_distance(document_id: str) -> int:
    """The number of words from a country's first mention to its repetition."""
    return int(document_id.rpartition(_DISTANCE)[2])


def needed_words(document_id: str) -> tuple[int, int]:
    """The indices in the document of the two words to predict: its last two."""
    first = probe_distance(document_id)
    return first, first + 1


class MemoryProbe(Source):
    """Generated documents whose last two words only a memory of the first two can predict."""

    def __init__(
        self,
        *,
        num_train: Size = 4000,
        num_valid: Size = 560,
        num_test: Size = 1120,
        num_countries: Size = 12,
        min_distance: Size = 5,
        max_distance: Size = 60,
        corpus_seed: Seed = 1,
    ) -> None:
        """num_train, num_valid, num_test: documents of the split.
        num_countries: words to choose from.
        min_distance, max_distance: words from a country to its repetition.
        corpus_seed: of what the documents are drawn by."""
        self._counts = {"train": num_train, "valid": num_valid, "test": num_test}
        for split, count in self._counts.items():
            if count < 1:
                raise UserError(f"data.num_{split}={count} is not at least 1")
        most = len(COUNTRIES)
        if not 2 <= num_countries <= most:
            raise UserError(f"data.num_countries={num_countries} is not between 2 and {most}")
        if not SHORTEST <= min_distance <= max_distance:
            raise UserError(
                f"data.min_distance={min_distance} and data.max_distance={max_distance}: the "
                f"distances go up, from {SHORTEST} words at least"
            )
        self._seed, self._num_countries = corpus_seed, num_countries
        self._distances = range(min_distance, max_distance + 1)
        settings = {
            **{"num_train": num_train, "num_valid": num_valid, "num_test": num_test},
            **{"num_countries": num_countries, "corpus_seed": corpus_seed},
            **{"min_distance": min_distance, "max_distance": max_distance},
        }
        super().__init__("data=memory_probe", settings, {})

    def _own_splits(self) -> Iterable[str]:
        return self._counts

    def _read(self, split: str) -> Iterator[Document]:
        pairs = probe_documents(
            split,
            seed=self._seed,
            num_documents=self._counts[split],
            num_countries=self._num_countries,
            distances=self._distances,
        )
        return itertools.starmap(Document, pairs)
