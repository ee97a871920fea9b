"""Evaluates a model on a suite: the sums of its sentences, and which predictions hold."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

from lmkit.inference import TrainedModel
from lmkit.suite.accuracy import Verdict, accuracies
from lmkit.suite.items import Regions, Suite
from lmkit.suite.spelling import Punctuation, respelled
from lmkit.suite.sums import Sums, has_unknown, region_sums
from lmkit.system.files import strict_json

log = logging.getLogger(__name__)

# Of the items: from this share with unknown words on there is a warning.
MANY_UNKNOWN = 0.2
SAMPLE = 2000  # items in which other settings are tried

Sentence = tuple[str, ...]  # its regions, as the model is to read them


class Reading(NamedTuple):
    """How the sentences of a suite are read: how respelled, and whether their end counts."""

    punctuation: Punctuation = "as_is"
    lower: bool = False
    end: bool = False


def evaluate_suite(
    trained: TrainedModel, suite: Suite, reading: Reading, name: str
) -> tuple[dict[str, Any], Iterator[str]]:
    """The accuracies, in the form of `accuracies`, with the time that they took; and a line of JSON
    for each item.

    name: of the model, for messages.
    """
    began = time.perf_counter()
    sentences = _respelled(trained, suite.sentences(), reading)
    sums = region_sums(trained, sentences, reading.end)
    verdicts = list(_verdicts(suite, sums))
    result = accuracies(suite, verdicts)
    seconds = time.perf_counter() - began
    _warn_of_unknown(trained, suite, reading, name, result["overall"]["num_unknown"])
    speed = {"seconds": seconds, "sentences_per_second": len(sentences) / seconds}
    return {**result, **speed}, _rows(name, suite, sentences, sums, verdicts)


def _respelled(
    trained: TrainedModel, sentences: Iterable[Regions], reading: Reading
) -> list[Sentence]:
    """The regions of sentences, respelled for the model."""
    respell = respelled(trained.tokenizer, reading.punctuation, reading.lower)
    return [tuple(map(respell, regions.values())) for regions in sentences]


def _verdicts(suite: Suite, sums: Sequence[Sums]) -> Iterator[Verdict]:
    """What is found of each item; sums: of all sentences, in order."""
    remaining = iter(sums)
    for item in suite.items:
        surprisals, unknown = {}, False
        for condition, regions in item.sentences.items():
            found = next(remaining)
            surprisals[condition] = dict(zip(regions, found.bits, strict=True))
            unknown |= found.has_unknown
        yield Verdict(tuple(formula.outcome(surprisals) for formula in item.formulas), unknown)


def _rows(
    name: str,
    suite: Suite,
    sentences: Sequence[Sentence],
    sums: Sequence[Sums],
    verdicts: Sequence[Verdict],
) -> Iterator[str]:
    remaining = iter(zip(sentences, sums, strict=True))
    for item, verdict in zip(suite.items, verdicts, strict=True):
        read = {condition: next(remaining) for condition in item.sentences}
        yield strict_json(
            {
                "run": name,
                "id": item.id,
                "group": item.group,
                "correct": [outcome.holds for outcome in verdict.outcomes],
                "tied": [outcome.tied for outcome in verdict.outcomes],
                "unknown": verdict.has_unknown,
                "sentences": {name: " ".join(filter(None, s)) for name, (s, _) in read.items()},
                "bits": {
                    name: dict(zip(map(str, item.sentences[name]), found.bits, strict=True))
                    for name, (_, found) in read.items()
                },
            }
        )


def _warn_of_unknown(
    trained: TrainedModel, suite: Suite, reading: Reading, name: str, num_unknown: int
) -> None:
    """Warn if many items have unknown words, and name the settings with which fewer have."""
    share = num_unknown / len(suite.items)
    if share <= MANY_UNKNOWN:
        return
    fewer: dict[str, float] = {}
    for settings, other in (
        ("punctuation=apart", Reading("apart", reading.lower)),
        ("lower=true", Reading(reading.punctuation, True)),
        ("punctuation=apart lower=true", Reading("apart", True)),
    ):
        then = _share_unknown(trained, suite, other)
        if then < 0.9 * min([share, *fewer.values()]):
            fewer[settings] = then
    remedy = "".join(f"; with {settings} {then:.0%} have" for settings, then in fewer.items())
    log.warning(
        "%s: %s of the items have words that are not in its vocabulary%s",
        *(name, f"{share:.0%}", remedy),
    )


def _share_unknown(trained: TrainedModel, suite: Suite, reading: Reading) -> float:
    """The share of items with unknown words, of a sample of them."""
    items = suite.items[:: -(-len(suite.items) // SAMPLE)]
    sentences = (regions for item in items for regions in item.sentences.values())
    read = iter(has_unknown(trained.tokenizer, _respelled(trained, sentences, reading)))
    return sum(any([*islice(read, len(item.sentences))]) for item in items) / len(items)
