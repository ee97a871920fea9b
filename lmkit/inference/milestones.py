"""All checkpoints that a run keeps, in the order in which they were written, and a curve over
them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from lmkit.errors import UserError
from lmkit.run import Run
from lmkit.run.checkpoints import read_manifest
from lmkit.system.files import write_figure
from lmkit.system.regular_file import listed

ALL = "all"  # in the place of a checkpoint's name
NAMED = re.compile(r"(chck|tokens)_(\d+)([MK]?)")
UNITS = {"chck": "words", "tokens": "tokens"}
FACTORS = {"": 1, "K": 1000, "M": 1_000_000}


class Milestone(NamedTuple):
    """A checkpoint: its name, and after how many of a unit (words, tokens or updates) it is."""

    name: str
    unit: str
    number: int
    step: int


def milestones(run: Run) -> list[Milestone]:
    """Those of `callbacks.milestones`, of words if there are any, else of tokens; else every other
    checkpoint by its step. Raises UserError if there are none."""
    found: dict[str, list[Milestone]] = {"words": [], "tokens": [], "updates": []}
    for path in listed(run.path / "checkpoints", "*.ckpt"):
        step = read_manifest(path).get("step", 0)
        if match := NAMED.fullmatch(path.stem):
            kind, number, letter = match.groups()
            milestone = Milestone(path.stem, UNITS[kind], int(number) * FACTORS[letter], step)
            found[milestone.unit].append(milestone)
        elif path.stem.startswith("step-"):
            found["updates"].append(Milestone(path.stem, "updates", step, step))
    kept = next(filter(None, found.values()), None)
    if kept is None:
        raise UserError(f"{run.id} has no checkpoint: train it first, or longer")
    return sorted(kept, key=lambda each: each.number)


def draw_curve(
    path: Path, points: Sequence[Milestone], values: Mapping[str, Sequence[float]], what: str
) -> None:
    """Write a picture of values over checkpoints, a line for each name.

    values: by name one value for each point. what: the name of the axis.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    numbers = [point.number for point in points]
    for name, line in values.items():
        axes.plot(numbers, line, marker="o", markersize=4, label=name)
    if numbers[0] > 0 and numbers[-1] >= 10 * numbers[0]:
        axes.set_xscale("log")
    axes.set_xlabel(f"{points[0].unit} seen")
    axes.set_ylabel(what)
    axes.grid(alpha=0.3)
    if len(values) > 1:
        axes.legend(fontsize=8)
    path.parent.mkdir(exist_ok=True)
    write_figure(path, figure)
