"""An optimiser's settings for parameters by their names, and the learning rates of its groups."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import combinations
from typing import Any

from torch import nn
from torch.optim import Optimizer

Settings = Mapping[str, Any]
SHOWN = 12  # names in a message


@dataclass(frozen=True)
class Groups:
    """Settings of an optimiser for some of the parameters.

    groups: other values of the optimiser's keys for the parameters whose names have a text in them,
    or, with * ? or [ in it, match it as a whole, as {bias: {weight_decay: 0}}.
    """

    groups: dict[str, Any] | None = None

    @property
    def by_pattern(self) -> dict[str, Settings]:
        """The settings of each pattern. What was set as groups.model.head.lr=1 is nested: names
        have dots, which separate keys."""
        settings: dict[str, Settings] = {}
        for pattern, own in _flat(self.groups or {}):
            settings[pattern] = {**settings.get(pattern, {}), **own}
        return settings

    def misfits(
        self, names: Sequence[str], others: Mapping[str, str], at: str = "optimizer.groups"
    ) -> list[str]:
        """A sentence for each pattern that matches none of the parameters' names, and for each
        parameter that two patterns give different values.

        others: the other names of shared parameters, with the one that is among `names`.
        """
        found = {p: [n for n in names if matches(p, n)] for p in self.by_pattern}
        shown = ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
        wrong = []
        for pattern in (pattern for pattern, matched in found.items() if not matched):
            shared = [f"{n} is {others[n]}, so name that" for n in others if matches(pattern, n)]
            known = "; ".join(shared) or f"there are: {shown}"
            wrong.append(f"{at}.{pattern}: no parameter has such a name; {known}")
        for (one, here), (other, there) in combinations(self.by_pattern.items(), 2):
            both = [name for name in found[one] if name in found[other]]
            for key in here if both else ():
                if key in there and here[key] != there[key]:
                    more = f" and {len(both) - 1} more" if len(both) > 1 else ""
                    wrong.append(
                        f"{at}.{one}.{key}={here[key]} but {at}.{other}.{key}={there[key]}: both "
                        f"are of {both[0]}{more}; make them equal, or one name match less"
                    )
        return wrong

    def of(
        self, named: Iterable[tuple[str, nn.Parameter]], *, with_names: bool = False
    ) -> list[Any]:
        """What an optimiser takes as `params`: the parameters alone if there are no groups, else a
        mapping for each group, those that no pattern matches first.

        The parameters of a group match the same patterns, so the groups do not depend on the
        settings. with_names: pairs of names and parameters instead of parameters.
        """
        divided: dict[tuple[str, ...], list[Any]] = {(): []}
        for name, parameter in named:
            patterns = tuple(pattern for pattern in self.by_pattern if matches(pattern, name))
            each = (name, parameter) if with_names else parameter
            divided.setdefault(patterns, []).append(each)
        rest = divided.pop(())
        if not self.by_pattern:
            return rest
        groups: list[dict[str, Any]] = [{"params": rest}] if rest else []
        order = list(self.by_pattern)
        labels: set[str] = set()
        for patterns in sorted(divided, key=lambda each: [order.index(p) for p in each]):
            settings = {k: v for p in patterns for k, v in self.by_pattern[p].items()}
            label = _label(patterns, labels)
            groups.append({"params": divided[patterns], **settings, "name": label})
        return groups


def matches(pattern: str, name: str) -> bool:
    """Whether a parameter's name has the pattern in it, or, with * ? or [ in it, matches it."""
    return fnmatchcase(name, pattern if set(pattern) & set("*?[") else f"*{pattern}*")


def learning_rates(optimizer: Optimizer) -> dict[str, float]:
    """The rate of the first group as `lr`, and that of each other group whose own rate, which a
    schedule multiplies, is another one, as `lr/NAME`."""
    first, *others = optimizer.param_groups
    rates = {"lr": first["lr"]}
    for number, group in enumerate(others, start=1):
        if _own_rate(group) != _own_rate(first):
            rates[f"lr/{group.get('name', number)}"] = group["lr"]
    return rates


def _own_rate(group: Mapping[str, Any]) -> float:
    rate: float = group.get("initial_lr", group["lr"])
    return rate


def _flat(groups: Mapping[Any, Any], above: str = "") -> Iterator[tuple[str, Settings]]:
    for key, value in groups.items():
        inner = {k: v for k, v in value.items() if isinstance(v, Mapping)}
        yield from _flat(inner, f"{above}{key}.")
        if own := {k: v for k, v in value.items() if k not in inner}:
            yield f"{above}{key}", own


def _label(patterns: Sequence[str], taken: set[str]) -> str:
    """A name of a group that every logger takes, and that no other group has."""
    words = (re.sub(r"[^\w.]+", " ", pattern).strip(" .") or "all" for pattern in patterns)
    label = own = " and ".join(words)
    while label in taken:
        label = f"{own} {len(taken) + 1}"
    taken.add(label)
    return label
