"""How many predictions of a suite hold, by group, by level and overall, with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from lmkit.suite.formula import Outcome
from lmkit.suite.items import Suite

RESAMPLES = 10_000
SEED = 1
INTERVAL = (2.5, 97.5)  # percentiles

Floats = npt.NDArray[np.float64]


class Verdict(NamedTuple):
    """The outcome of each formula of an item, and whether one of its words is unknown."""

    outcomes: tuple[Outcome, ...]
    has_unknown: bool


def accuracies(suite: Suite, verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """`overall`, `levels` and `groups`: of each its accuracy, counts and interval.

    The accuracy of a group is the share of its predictions that hold; ties do not. That of a level
    and overall is the mean over their groups, as BLiMP and SyntaxGym report it. The interval is of
    a percentile bootstrap (Efron 1979) of the items of each group, at 95 %.
    """
    groups, draws = {}, {}
    for group, numbers in suite.by_group().items():
        own = [verdicts[number] for number in numbers]
        formulas = [formula.text for formula in suite.items[numbers[0]].formulas]
        groups[group], draws[group] = _of_group(group, own, formulas)
    levels = {
        level: {
            label: _mean(groups, draws, [group for group in groups if labels.get(group) == label])
            for label in dict.fromkeys(map(labels.get, groups))
            if label is not None
        }
        for level, labels in suite.levels.items()
    }
    return {"overall": _mean(groups, draws, list(groups)), "levels": levels, "groups": groups}


def _of_group(
    group: str, verdicts: Sequence[Verdict], formulas: Sequence[str]
) -> tuple[dict[str, Any], Floats]:
    """The accuracy of a group, and that of each resample (RESAMPLES,)."""
    holds = np.array([[each.holds for each in verdict.outcomes] for verdict in verdicts])
    draws = resampled(holds.mean(axis=1), group)
    found: dict[str, Any] = {
        **_interval(float(holds.mean()), draws),
        "num_items": len(verdicts),
        "num_predictions": holds.size,
        "num_correct": int(holds.sum()),
        "num_ties": sum(each.tied for verdict in verdicts for each in verdict.outcomes),
        "num_unknown": sum(verdict.has_unknown for verdict in verdicts),
    }
    if len(formulas) > 1:
        shares = holds.mean(axis=0).tolist()
        found["predictions"] = [
            {"formula": formula, "accuracy": share}
            for formula, share in zip(formulas, shares, strict=True)
        ]
    return found, draws


def resampled(shares: Floats, group: str) -> Floats:
    """The mean of each of `RESAMPLES` samples of the items with replacement, (RESAMPLES,).

    shares: (items,), of each item's predictions that hold. A sample's mean depends only on how
    often it draws each of the few different shares, which is multinomial. The generator's seed is
    the group's name, so that no interval depends on the other groups.
    """
    values, counts = np.unique(shares, return_counts=True)
    generator = np.random.default_rng([SEED, *group.encode()])
    drawn = generator.multinomial(len(shares), counts / len(shares), size=RESAMPLES)
    means: Floats = drawn @ values / len(shares)
    return means


def _mean(
    groups: Mapping[str, Mapping[str, Any]], draws: Mapping[str, Floats], names: Sequence[str]
) -> dict[str, Any]:
    """The mean over groups, with the sums of their counts."""
    accuracy = sum(groups[name]["accuracy"] for name in names) / len(names)
    counts = ("num_items", "num_predictions", "num_correct", "num_ties", "num_unknown")
    return {
        **_interval(accuracy, sum(draws[name] for name in names) / len(names)),
        "num_groups": len(names),
        **{count: sum(groups[name][count] for name in names) for count in counts},
    }


def _interval(accuracy: float, draws: Floats | float) -> dict[str, float]:
    low, high = np.percentile(draws, INTERVAL).tolist()
    return {"accuracy": accuracy, "low": low, "high": high}


def references(suite: Suite) -> dict[str, Any]:
    """The accuracies of others' models in the form of `accuracies`, where all groups have one."""
    found = {}
    for model, by_group in suite.references.items():
        groups = {group: by_group[group] for group in suite.by_group() if group in by_group}
        if len(groups) < len(suite.by_group()):
            continue
        levels: dict[str, dict[str, float]] = {}
        for level, labels in suite.levels.items():
            levels[level] = {}
            for label in dict.fromkeys(labels.values()):
                own = [groups[group] for group in groups if labels.get(group) == label]
                levels[level] |= {label: sum(own) / len(own)} if own else {}
        overall = sum(groups.values()) / len(groups)
        found[model] = {"overall": overall, "levels": levels, "groups": groups}
    return found
