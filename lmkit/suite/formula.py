"""SyntaxGym's formulas: what must hold between the surprisals of an item's regions.

    disjunction = conjunction {"|" conjunction}
    conjunction = comparison {"&" comparison}
    comparison  = sum [("<" | ">" | "=") sum]
    sum         = product {("+" | "-") product}
    product     = signed {("*" | "/") signed}
    signed      = ["-"] (region | number | "(" disjunction ")" | "[" disjunction "]")
    region      = "(" (number | "*") ";" "%" condition "%" ")"

`*` is the whole sentence. Surprisals are in bits; `=` is approximate, as in syntaxgym-core.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from lmkit.errors import UserError

# The tolerances of `=` in syntaxgym-core, of bits.
RELATIVE, ABSOLUTE = 1e-5, 1e-3
MAX_DEPTH = 50
EXPECTED = "a region such as (5;%condition%), a number or a bracket"
SYMBOL = re.compile(
    r"(?P<region>\(\s*(?P<number>\d+|\*)\s*;\s*%(?P<condition>[^%]*)%\s*\))"
    r"|(?P<constant>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)"
    r"|(?P<sign>[-+*/<>=&|()\[\]])"
)
BRACKETS = {"(": ")", "[": "]"}
# From those that bind least to those that bind most; of comparisons there is one at most.
LEVELS = ("|", "&", "<>=", "+-", "*/")
COMPARISONS = 2

# The surprisal of each region in bits, by the name of the condition and the number of the region.
Surprisals = Mapping[str, Mapping[int, float]]


class Region(NamedTuple):
    """A region of the sentence of a condition; None is the whole sentence."""

    condition: str
    number: int | None

    def __str__(self) -> str:
        return f"({'*' if self.number is None else self.number};%{self.condition}%)"


@dataclass(frozen=True)
class Operation:
    """Two terms and the sign between them."""

    sign: str
    left: Term
    right: Term


Term = Region | Operation | float


class Outcome(NamedTuple):
    """Whether a formula holds, and if it does not, whether a comparison in it was of equals."""

    holds: bool
    tied: bool


@dataclass(frozen=True)
class Formula:
    """A formula as it was written, and as terms."""

    text: str
    term: Term

    @classmethod
    def parse(cls, text: str) -> Formula:
        """Raises UserError, which names the column, for anything that is no formula."""
        parser = _Parser(text)
        term = parser.level(0)
        if parser.kind != "end":
            parser.fail("an operator or the end")
        if not _is_truth(term):
            raise UserError("it compares nothing: expected <, > or = between two sums")
        return cls(text, term)

    def regions(self) -> list[Region]:
        """The regions that it names."""
        return list(_regions(self.term))

    def outcome(self, surprisals: Surprisals) -> Outcome:
        """Evaluate it for the sentences of one item."""
        ties: list[None] = []
        holds = bool(_value(self.term, surprisals, ties))
        return Outcome(holds, bool(ties) and not holds)


def _is_truth(term: Term) -> bool:
    return isinstance(term, Operation) and term.sign in "|&<>="


def _regions(term: Term) -> Iterator[Region]:
    if isinstance(term, Region):
        yield term
    elif isinstance(term, Operation):
        yield from _regions(term.left)
        yield from _regions(term.right)


def _value(term: Term, surprisals: Surprisals, ties: list[None]) -> float:
    """A term's value, a truth as 0 or 1; notes each `<` and `>` between equals in `ties`."""
    if isinstance(term, Region):
        regions = surprisals[term.condition]
        return math.fsum(regions.values()) if term.number is None else regions[term.number]
    if not isinstance(term, Operation):
        return term
    left, right = (_value(each, surprisals, ties) for each in (term.left, term.right))
    match term.sign:
        case "|":
            return left or right
        case "&":
            return left and right
        case "+":
            return left + right
        case "-":
            return left - right
        case "*":
            return left * right
        case "/":
            return left / right if right else math.nan
        case "=":
            return abs(left - right) <= ABSOLUTE + RELATIVE * abs(right)
    if left == right:
        ties.append(None)
    return left < right if term.sign == "<" else left > right


class _Parser:
    """Recursive descent; `kind`, `match` and `column` are those of the text's next symbol."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.end = self.depth = 0
        self.advance()

    def advance(self) -> None:
        start = self.end + len(self.text[self.end :]) - len(self.text[self.end :].lstrip())
        self.column = start + 1
        self.match = SYMBOL.match(self.text, start)
        self.kind = "end" if start == len(self.text) else "other"
        if self.match:
            self.kind = next(k for k in ("region", "constant", "sign") if self.match[k])
            self.end = self.match.end()

    def fail(self, expected: str) -> None:
        found = "the end"
        if self.kind != "end":
            shown = self.match[0] if self.match else self.text[self.column - 1]
            found = repr(shown)
        raise UserError(f"column {self.column}: expected {expected}, found {found}")

    def takes(self, signs: str) -> str:
        """The next symbol if it is one of these signs, which is then passed over; else nothing."""
        if self.kind != "sign" or (sign := self.text[self.column - 1]) not in signs:
            return ""
        self.advance()
        return sign

    def level(self, number: int) -> Term:
        """A term of operators that bind as those of a level do, or more."""
        if number == len(LEVELS):
            return self.signed()
        column = self.column
        term = self.level(number + 1)
        while sign := self.takes(LEVELS[number]):
            self.check(term, column, truth=number < COMPARISONS)
            column = self.column
            right = self.level(number + 1)
            self.check(right, column, truth=number < COMPARISONS)
            term = Operation(sign, term, right)
            if number == COMPARISONS:
                break
        return term

    def check(self, term: Term, column: int, truth: bool) -> None:
        if _is_truth(term) != truth:
            kinds = ("a sum of surprisals", "a comparison")
            expected, found = (kinds[truth], kinds[not truth])
            raise UserError(f"column {column}: expected {expected}, found {found}")

    def signed(self) -> Term:
        column = self.column
        if not self.takes("-"):
            return self.atom()
        term = self.atom()
        self.check(term, column + 1, truth=False)
        return Operation("-", 0.0, term)

    def atom(self) -> Term:
        match = self.match
        if match and self.kind == "region":
            self.advance()
            number = None if match["number"] == "*" else int(match["number"])
            return Region(match["condition"].strip(), number)
        if match and self.kind == "constant":
            self.advance()
            return float(match["constant"])
        opened = self.takes("([")
        if not opened:
            self.fail(EXPECTED)
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise UserError(f"it has brackets more than {MAX_DEPTH} within each other")
        term = self.level(0)
        if not self.takes(BRACKETS[opened]):
            self.fail(f"an operator or {BRACKETS[opened]!r}")
        self.depth -= 1
        return term
