"""A suite of tests: items with their sentences by condition, and what must hold between them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import NamedTuple

from lmkit.corpus.records import as_text
from lmkit.errors import UserError
from lmkit.suite.formula import Formula
from lmkit.system.paths import listed

# Of a pair: the whole good sentence, or its second region, is likelier than that of the bad one.
GOOD_IS_LIKELIER = Formula.parse("(*;%good%) < (*;%bad%)")
GOOD_END_IS_LIKELIER = Formula.parse("(2;%good%) < (2;%bad%)")

# The regions of a sentence by number, in order; joined by a space, but for empty ones, they are it.
Regions = Mapping[int, str]


class Item(NamedTuple):
    """One test. `formulas`: each is a prediction about the sentences."""

    id: str
    group: str
    sentences: Mapping[str, Regions]
    formulas: tuple[Formula, ...]


@dataclass(frozen=True)
class Suite:
    """Items in groups, such as BLiMP's paradigms.

    name: what a table calls it. levels: by the name of each, such as `field`, the label that every
    group has there. is_pairs: whether a model that guesses is right half the time. references: by
    the name of a model of others its accuracy by group. skipped: groups without what was asked for.
    """

    name: str
    items: tuple[Item, ...]
    levels: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    is_pairs: bool = True
    references: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    skipped: tuple[str, ...] = ()

    def by_group(self) -> dict[str, list[int]]:
        """The numbers of the items of each group, in the suite's order."""
        numbers: dict[str, list[int]] = {}
        for number, item in enumerate(self.items):
            numbers.setdefault(item.group, []).append(number)
        return numbers

    def sentences(self) -> Iterator[Regions]:
        """The sentences of all items, in order."""
        for item in self.items:
            yield from item.sentences.values()


def pair(id: str, group: str, good: str, bad: str) -> Item:
    """An item of two whole sentences."""
    return Item(id, group, {"good": {1: good}, "bad": {1: bad}}, (GOOD_IS_LIKELIER,))


def sentence(value: object, path: Path, where: str, *, may_be_empty: bool = False) -> str:
    """A value of a file as a sentence, or a part of one, without spaces around it.

    Raises UserError, which names the file and `where` in it, if it is no text, is empty or holds a
    line end.
    """
    text = as_text(value, f"{path}, {where}").strip()
    if not (text or may_be_empty):
        raise UserError(f"{path}, {where} is empty: expected a sentence")
    if "\n" in text:
        raise UserError(f"{path}, {where} holds a line end: a sentence is one line")
    return text


def member(record: Mapping[str, object], key: str, path: Path, where: str) -> object:
    """A member of a JSON object; raises UserError, with the nearest name, if it has none."""
    if key not in record:
        raise UserError(f"{path}, {where} has no {key!r}; {near(key, record)}")
    return record[key]


def near(name: str, names: Mapping[str, object]) -> str:
    """`did you mean ...?`, or the names that there are."""
    close = get_close_matches(name, list(names), n=1)
    return f"did you mean {close[0]!r}?" if close else f"it has {listed(list(names))}"
