"""Text that only a memory can predict: two countries, filler, then the same two countries.

`kenya peru by train then slowly the two countries kenya peru`: the last two words are as far
from their first mention as the number of filler words says, and nothing between tells of them.
"""

import random
from bisect import bisect
from collections.abc import Iterator
from itertools import accumulate

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
# From a country to its repetition without filler: the other country and the sentence between.
SHORTEST = NUM_NEEDED + len(SENTENCE)
_DISTANCE = "/distance="


def probe_documents(
    split: str, *, seed: int, num_documents: int, num_countries: int, distances: range
) -> Iterator[tuple[str, str]]:
    """Id and text of each document; the distances d take turns, in train as often as 1 / d.

    Memory is learned from near to far: where all distances are as frequent, Elman networks were
    seen to learn none. Drawn by `Random.random` alone, the one method Python keeps the same across
    versions.
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
    """How many words before each needed word its country was named."""
    return int(document_id.rpartition(_DISTANCE)[2])


def needed_words(document_id: str) -> tuple[int, int]:
    """The indices of the two needed words among the document's words: its last two."""
    first = probe_distance(document_id)
    return first, first + 1
