"""The ranges of numbers that keys can have, as annotations that the check of a config reads."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

from annotated_types import Ge, Gt, Le, Lt

Size = Annotated[int, Ge(1)]
Count = Annotated[int, Ge(0)]
Seed = Annotated[int, Ge(0), Lt(2**32)]  # the range of NumPy
Share = Annotated[float, Ge(0), Lt(1)]
Fraction = Annotated[float, Ge(0), Le(1)]
NonNegative = Annotated[float, Ge(0)]
Positive = Annotated[float, Gt(0)]
Real = Annotated[float, "any"]  # any finite number


def broken(value: float, marks: Iterable[Any]) -> str | None:
    """None if a value is in range; else the range, as the text `at least 0 and below 1`."""
    bounds = []
    for mark in marks:
        match mark:
            case Ge(bound):
                bounds.append((value >= bound, f"at least {bound}"))  # type: ignore[operator]
            case Gt(bound):
                bounds.append((value > bound, f"above {bound}"))  # type: ignore[operator]
            case Le(bound):
                bounds.append((value <= bound, f"at most {bound}"))  # type: ignore[operator]
            case Lt(bound):
                bounds.append((value < bound, f"below {bound}"))  # type: ignore[operator]
    if all(within for within, _ in bounds):
        return None
    return " and ".join(words for _, words in bounds)
