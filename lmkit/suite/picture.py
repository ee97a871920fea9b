"""The picture of several models on a suite: accuracy by group, with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# The colours of Okabe and Ito 2008, which colour-blind people can tell apart, and markers.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "D", "^", "v", "P", "X")
PUBLISHED = ("|", "x", "+", "1", "2", "3", "4")
ROW = 0.2  # inches
WIDTH = 9.0


def draw(result: Mapping[str, Any]) -> Figure:
    """A row for each group under that of its label, in the level with the most labels; a point with
    its interval for each run, a grey sign for each model of others, and chance for minimal pairs.
    """
    from matplotlib.figure import Figure

    rows = _rows(result)
    height = ROW * (len(rows) + 2) * max(1.0, 0.55 * len(result["runs"]))
    figure = Figure(figsize=(WIDTH, height + 1.2), dpi=120, layout="constrained")
    axes = figure.subplots()
    _draw_rows(axes, rows)
    _draw_runs(axes, rows, result["runs"])
    for (model, found), sign in zip(result["references"].items(), PUBLISHED * 9, strict=False):
        values = [_of(found, row) for row in rows]
        axes.scatter(
            values,
            range(len(rows)),
            marker=sign,
            color="0.45",
            s=28,
            zorder=2,
            label=f"{model} (published)",
        )
    if result["is_pairs"]:
        axes.axvline(0.5, color="0.45", linestyle=":", zorder=1)
        axes.text(0.505, len(rows) - 0.5, "chance", color="0.35", va="center", fontsize=8)
    axes.set(xlim=(-0.02, 1.02), ylim=(len(rows), -0.8), xlabel="accuracy")
    axes.grid(axis="x", color="0.92", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    figure.legend(loc="outside upper center", ncols=3, frameon=False)
    return figure


# Where the numbers of a row are in a result: `overall`, a label of a level, or a group.
Row = tuple[str, ...]


def _rows(result: Mapping[str, Any]) -> list[Row]:
    groups: Sequence[str] = list(result["runs"][0]["groups"])
    levels: Mapping[str, Mapping[str, str]] = result["levels"]
    rows: list[Row] = [("overall",)] if len(groups) > 1 else []
    finest = max(levels, key=lambda level: len(set(levels[level].values())), default="")
    labels = levels.get(finest, {})
    rows += [("groups", group) for group in groups if group not in labels]
    for label in dict.fromkeys(labels[group] for group in groups if group in labels):
        rows.append(("levels", finest, label))
        rows += [("groups", group) for group in groups if labels.get(group) == label]
    return rows


def _of(found: Any, row: Row) -> Any:
    for key in row:
        found = found[key]
    return found


def _draw_rows(axes: Axes, rows: Sequence[Row]) -> None:
    axes.set_yticks(range(len(rows)), [row[-1].replace("_", " ") for row in rows], fontsize=8)
    for at, (row, tick) in enumerate(zip(rows, axes.get_yticklabels(), strict=True)):
        if row[0] != "groups":
            tick.set_fontweight("bold")
            axes.axhspan(at - 0.5, at + 0.5, color="0.95", linewidth=0, zorder=0)


def _draw_runs(axes: Axes, rows: Sequence[Row], runs: Sequence[Mapping[str, Any]]) -> None:
    for number, run in enumerate(runs):
        shift = 0.6 * ((number + 0.5) / len(runs) - 0.5)
        found = [_of(run, row) for row in rows]
        errors = [
            [max(each["accuracy"] - each["low"], 0.0) for each in found],
            [max(each["high"] - each["accuracy"], 0.0) for each in found],
        ]
        axes.errorbar(
            [each["accuracy"] for each in found],
            [at + shift for at in range(len(rows))],
            xerr=errors,
            fmt=MARKERS[number % len(MARKERS)],
            color=COLOURS[number % len(COLOURS)],
            markersize=4.5,
            linewidth=1.2,
            zorder=3,
            label=f"{run['run']} ({run['checkpoint']})",
        )
