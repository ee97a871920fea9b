"""`lmkit analyze probe`: how far back models remember, as one picture of what they were seen do."""

from __future__ import annotations

import io
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from lmkit.assembly import make_data
from lmkit.config.mistakes import nearest
from lmkit.errors import UserError
from lmkit.launch import train
from lmkit.probe import chance, check_config, num_correct, predictions, same_size
from lmkit.run import Run, mint_id
from lmkit.system.files import strict_json, write_atomically
from lmkit.trained import TrainedModel

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BUCKET = 10  # distances to a row of the table
# The colours of Okabe and Ito 2008, which the colour-blind tell apart; so do line and marker.
STYLES = {
    "window": ("Window", {"color": "#D55E00", "linestyle": "-.", "marker": "s"}),
    "elman": ("Elman", {"color": "#56B4E9", "linestyle": "--", "marker": "^"}),
    "gru": ("GRU", {"color": "#E69F00", "linestyle": "-", "marker": "o", "linewidth": 3.5}),
    "lstm": ("LSTM", {"color": "#000000", "linestyle": "-", "marker": "."}),
}


def analyze(
    kind: str, config: dict[str, Any], overrides: list[str], *, context: int = 10
) -> dict[str, Any]:
    """Train window, Elman, GRU and LSTM on the memory probe and draw how far back each knows.

        lmkit analyze probe
        lmkit analyze probe context=5 trainer.max_epochs=4

    The config is conf/probe.yaml; its LSTM says how many parameters each may have. Each is a run
    like any other, beside the picture.
    context: words that the window model sees.
    """
    if kind not in ("probe",):
        raise UserError(f"lmkit analyze {kind}: no such analysis; {nearest(kind, ['probe'])}")
    check_config(config, context)
    identity = config["run_id"] or mint_id()
    directory = Path(config["outputs"]).absolute() / config["name"] / f"{identity}-probe"
    Run(directory).check_links()
    result = _train_and_measure(config, overrides, context, identity)
    directory.mkdir(parents=True, exist_ok=True)
    result |= {name: str(directory / f"probe.{name}") for name in ("json", "png")}
    picture = io.BytesIO()
    draw(result).savefig(picture, format="png")
    write_atomically(directory / "probe.json", strict_json(result, indent=2).encode())
    write_atomically(directory / "probe.png", picture.getvalue())
    Console().print(_table(result))
    print(f"picture: {result['png']}\nnumbers: {result['json']}")
    return result


def _train_and_measure(
    config: Mapping[str, Any], overrides: list[str], context: int, identity: str
) -> dict[str, Any]:
    prepared = make_data(dict(config)).prepared
    store = prepared.stores["test"]
    configs = same_size(config, context, prepared.tokenizer.vocabulary_size)
    models = {}
    for place, (name, model_config) in enumerate(configs.items(), start=1):
        print(f"{place}/{len(configs)} {STYLES[name][0]}", file=sys.stderr)
        model_config["run_id"] = f"{identity}-{name}"
        with redirect_stdout(sys.stderr):  # what it says of one run is not the result here
            summary = train(model_config, overrides)
        run = Run(Path(summary["run"]))
        counts = num_correct(predictions(TrainedModel.load(run, model_config), store), store)
        models[name] = {
            "run": f"{run.name}/{run.id}",
            "hidden_size": model_config["model"]["hidden_size"],
            "num_parameters": summary["num_parameters"],
            "seconds": summary["seconds"],
            "num_correct": [correct for correct, _ in counts.values()],
            "accuracy": [correct / total for correct, total in counts.values()],
        }
    return {
        "analysis": "probe",
        "split": "test",
        "context": context,
        "chance": chance(int(str(prepared.source["num_countries"]))),
        "distances": list(counts),
        "num_words": [total for _, total in counts.values()],
        "models": models,
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
    """First and last distance of each row of the table, 1 to 10, 11 to 20, .., and their places."""
    rows = []
    for _, group in groupby(enumerate(distances), key=lambda each: (each[1] - 1) // BUCKET):
        places = list(group)
        rows.append((places[0][1], places[-1][1], slice(places[0][0], places[-1][0] + 1)))
    return rows


def _table(result: Mapping[str, Any]) -> Table:
    models = result["models"]
    table = Table("distance", title="Accuracy at the needed words, on test")
    for name in models:
        table.add_column(STYLES[name][0], justify="right")
    for first, last, places in buckets(result["distances"]):
        total = sum(result["num_words"][places])
        shares = [sum(model["num_correct"][places]) / total for model in models.values()]
        table.add_row(f"{first} to {last} words", *(f"{share:.3f}" for share in shares))
    table.add_section()
    for key in ("num_parameters", "hidden_size", "seconds"):
        label = key.replace("num_", "").replace("_", " ")
        table.add_row(label, *(f"{model[key]:,.0f}" for model in models.values()))
    return table
