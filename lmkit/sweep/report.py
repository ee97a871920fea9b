"""Shows what came of a sweep: a table, a picture and numbers."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from lmkit.metrics import perplexity
from lmkit.run import Directory, Run
from lmkit.sweep.study import OUTCOMES, FrozenTrial, Study, interrupted
from lmkit.system.files import strict_json
from lmkit.system.wording import counted

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NUM_SHOWN = 10
FEW = 6  # up to so many values each get a mark on the axis
COLOURS = {"finished": "#0072B2", "pruned": "#E69F00", "failed": "#D55E00"}
# For each key with a list of values: by the text on the command line, the value in the config.
Shown = Mapping[str, Mapping[str, Any]]


def typed(params: Mapping[str, Any], shown: Shown) -> dict[str, Any]:
    """Drawn values as they are in the config."""
    return {key: shown.get(key, {}).get(value, value) for key, value in params.items()}


def trial_record(trial: FrozenTrial, shown: Shown) -> dict[str, Any]:
    """A trial as plain values: its validations in order, its value if it finished."""
    return {
        "number": trial.number,
        "outcome": "interrupted" if interrupted(trial) else OUTCOMES[trial.state],
        "value": trial.value,
        "values": typed(trial.params, shown),
        "validations": [trial.intermediate_values[i] for i in sorted(trial.intermediate_values)],
        "why": trial.user_attrs.get("why", ""),
    }


def identity(directory: Directory) -> str:
    """The id of the sweep with this directory."""
    return directory.id.removesuffix("-sweep")


def run_of(directory: Directory, number: int) -> Run:
    """The run of a trial."""
    return Run(directory.path.parent / f"{identity(directory)}-{number:03d}")


def results(study: Study, directory: Directory, metric: str, shown: Shown) -> dict[str, Any]:
    """All results of a sweep: its trials by number, with their runs."""
    trials = [
        {
            "run": f"{directory.name}/{run_of(directory, trial.number).id}",
            **trial_record(trial, shown),
        }
        for trial in study.trials()
        if OUTCOMES[trial.state] != "waiting"
    ]
    finished = [trial for trial in trials if trial["outcome"] == "finished"]
    return {
        "sweep": str(directory.path),
        "metric": metric,
        "counts": dict(Counter(trial["outcome"] for trial in trials)),
        "best": min(finished, key=lambda trial: trial["value"], default=None),
        "trials": trials,
    }


def show(result: Mapping[str, Any]) -> None:
    """Print the best trials, the number of each outcome, and the reasons of failures."""
    console = Console()
    metric, trials = result["metric"], result["trials"]
    finished = sorted(
        (trial for trial in trials if trial["outcome"] == "finished"), key=lambda t: t["value"]
    )
    keys = list(trials[0]["values"]) if trials else []
    table = Table("trial", value_name(metric), *keys, box=None)
    for trial in finished[:NUM_SHOWN]:
        values = (short(value) for value in trial["values"].values())
        table.add_row(f"{trial['number']:03d}", value_text(trial["value"], metric), *values)
    console.print(table)
    counts = ", ".join(f"{n} {outcome}" for outcome, n in result["counts"].items())
    console.print(f"{counted(len(trials), 'trial')}: {counts}", highlight=False)
    reasons = Counter((trial["outcome"], trial["why"]) for trial in trials if trial["why"])
    for (outcome, why), count in reasons.most_common(NUM_SHOWN):
        if outcome != "pruned":
            line = f"{count} {outcome}: {why}"
            console.print(line, highlight=False, markup=False, soft_wrap=True)


def draw(result: Mapping[str, Any], log: Collection[str] = ()) -> Figure:
    """A picture with a panel for each varied key: the value of each trial against the key's.

    log: the keys that were searched in their logarithm.
    """
    from matplotlib.figure import Figure

    keys = list(result["trials"][0]["values"])
    columns = min(len(keys), 3)
    rows = -(-len(keys) // columns)
    figure = Figure(figsize=(4 * columns, 3.2 * rows), dpi=150, layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flat
    for key, axes in zip(keys, panels, strict=False):
        _panel(axes, key, result, log=key in log)
    for axes in list(figure.axes)[len(keys) :]:
        axes.remove()
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=len(labels), frameon=False)
    return figure


def _panel(axes: Any, key: str, result: Mapping[str, Any], *, log: bool) -> None:
    shown = [(trial, lowest(trial)) for trial in result["trials"] if lowest(trial) is not None]
    values = [trial["values"][key] for trial, _ in shown]
    xs = [number(value) for value in values]
    if any(map(math.isnan, xs)):
        names = sorted(set(map(short, values)))
        xs = [names.index(short(value)) for value in values]
        axes.set_xticks(range(len(names)), names)
    elif xs and min(xs) > 0 and (log or max(xs) >= 30 * min(xs)):
        _logarithmic(axes)
    elif _few(marks := sorted(set(xs))):
        axes.set_xticks(marks, list(map(short, marks)))
    for outcome, colour in COLOURS.items():
        points = [
            (x, value)
            for x, (trial, value) in zip(xs, shown, strict=True)
            if trial["outcome"] == outcome
        ]
        if points:
            axes.scatter(*zip(*points, strict=True), s=22, color=colour, label=outcome, alpha=0.8)
    axes.set(xlabel=key, ylabel=result["metric"])
    axes.spines[["top", "right"]].set_visible(False)


def _logarithmic(axes: Any) -> None:
    """With marks at 1, 2 and 5 of each power of ten."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: short(float(x))))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _few(marks: Sequence[float]) -> bool:
    """Whether there is room on the axis for a mark at each."""
    gaps = [after - before for before, after in pairwise(marks)]
    return len(marks) <= FEW and all(gap >= sum(gaps) / 12 for gap in gaps)


def lowest(trial: Mapping[str, Any]) -> float | None:
    """A trial's value; if it has none, the lowest of its validations."""
    seen = [value for value in trial["validations"] if value is not None and math.isfinite(value)]
    return trial["value"] if trial["value"] is not None else min(seen, default=None)


def number(value: object) -> float:
    """A drawn value as a number; NaN if it is not one."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and math.isfinite(value) else math.nan  # type: ignore


def short(value: object) -> str:
    """A drawn value as on a command line, with few digits."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else strict_json(value)


def values_text(values: Mapping[str, Any]) -> str:
    return " ".join(f"{key}={short(value)}" for key, value in values.items())


def value_name(metric: str) -> str:
    return "val/perplexity" if metric == "val/nll" else metric


def value_text(value: float, metric: str) -> str:
    """A value as a text; an nll is shown as its perplexity."""
    if not math.isfinite(value):
        return ""
    return f"{perplexity(value):,.2f}" if metric == "val/nll" else f"{value:.4f}"
