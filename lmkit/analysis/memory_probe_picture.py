"""The picture of how far each kind of model remembers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BUCKET = 10  # distances to a row of the table
# The colours of Okabe and Ito 2008, which colour-blind people can tell apart, as lines and markers.
STYLES = {
    "window": ("Window", {"color": "#D55E00", "linestyle": "-.", "marker": "s"}),
    "elman": ("Elman", {"color": "#56B4E9", "linestyle": "--", "marker": "^"}),
    "gru": ("GRU", {"color": "#E69F00", "linestyle": "-", "marker": "o", "linewidth": 3.5}),
    "lstm": ("LSTM", {"color": "#000000", "linestyle": "-", "marker": "."}),
}


def draw(result: Mapping[str, Any]) -> Figure:
    """Accuracy against distance: a line for each model, chance, and where the window ends."""
    from matplotlib.figure import Figure

    distances, context = result["distances"], result["context"]
    figure = Figure(figsize=(8, 4.6), dpi=150, layout="constrained")
    axes = figure.subplots()
    axes.axvspan(distances[0] - 1, context + 0.5, color="#D55E00", alpha=0.1, linewidth=0)
    axes.text(context + 0.9, 0, f"← a window of {context} words", color="#A04500", va="center")
    axes.axhline(result["chance"], color="0.45", linestyle=":")
    beside = axes.get_yaxis_transform()
    axes.text(1.01, result["chance"], "chance", color="0.35", va="center", transform=beside)
    for name, model in result["models"].items():
        label, style = STYLES[name]
        label = f"{label} ({model['num_parameters']:,} parameters)"
        axes.plot(distances, model["accuracy"], label=label, markersize=4, **style)  # type: ignore[arg-type]
    axes.set(
        xlabel="distance from a country to its repetition, in words",
        ylabel="accuracy at the two needed words",
        xlim=(distances[0] - 1, distances[-1] + 1),
        ylim=(-0.03, 1.03),
    )
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=2, frameon=False)
    return figure


def buckets(distances: Sequence[int]) -> list[tuple[int, int, slice]]:
    """The rows of the table, 1 to 10, 11 to 20, ..: first and last distance, and the slice of
    `distances` between them."""
    rows = []
    for _, group in groupby(enumerate(distances), key=lambda each: (each[1] - 1) // BUCKET):
        pairs = list(group)
        rows.append((pairs[0][1], pairs[-1][1], slice(pairs[0][0], pairs[-1][0] + 1)))
    return rows
