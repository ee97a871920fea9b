"""The record of a reproduction: the paper's numbers beside ours, the verdict, the cost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from rich.table import Table

from lmkit.errors import UserError
from lmkit.inference.identity import recorded
from lmkit.recipes.cost import cost, in_words
from lmkit.recipes.evaluation import in_metric
from lmkit.recipes.verdict import changes, not_whole, other_text, partly, reaches, verdict
from lmkit.run import Run
from lmkit.run.history import time
from lmkit.store import Prepared
from lmkit.system.wording import counted

FILE = "reproduction.json"  # in the run's directory
NAMES = {"bits_per_character": "bits per character"}


def reproduction(
    recipe: Mapping[str, Any],
    run: Run,
    config: Mapping[str, Any],
    measured: Mapping[str, Any],
) -> dict[str, Any]:
    """The record of a run beside its recipe, as plain values.

    recipe: the recipe's own config. config: the run's. measured: the numbers of the run's best
    checkpoint.
    """
    facts = recipe["recipe"]
    step = run.read("summary.json").get("best/step")
    splits = measured["splits"]
    of = {"step": step, "sha256": {split: each["sha256"] for split, each in splits.items()}}
    further = {**_measured_before(run, of), **measured["further"]}
    own = str(config["data"].get("protocol", "document"))
    rows = list(_rows(facts, measured["results"], further, own))
    changed = changes(recipe, config)
    record: Any = run.read("overrides.yaml")  # a list
    otherwise = partly(recipe, record, {}, config)
    texts = _texts(facts, {**recorded(run).get("splits", {}), **splits})
    reached = [row["reached"] for row in rows if row["reached"] is not None]
    return {
        "recipe": recipe["name"],
        "run": f"{run.name}/{run.id}",
        "verdict": verdict(changed, otherwise, texts, reached),
        "source": facts["source"],
        "metric": facts.get("metric", "perplexity"),
        "tolerance": facts.get("tolerance", 1.0),
        "rows": rows,
        "changed": {key: list(pair) for key, pair in changed.items()},
        "partly": {key: list(pair) for key, pair in otherwise.items()},
        "texts": texts,
        "seed": config["seed"],
        **of,
        "further": further,
        "cost": cost(run, measured["precision"]),
        "at": time(),
    }


def foretold(
    recipe: Mapping[str, Any], run: Run, config: Mapping[str, Any], prepared: Prepared
) -> Iterator[str]:
    """Why a training will be neither pass nor fail, as lines, known before it begins."""
    texts = _texts(recipe["recipe"], prepared.describe()["splits"])
    changed = changes(recipe, config)
    record: Any = run.read("overrides.yaml")  # a list
    otherwise = partly(recipe, record, run.config(), config)
    if word := not_whole(changed, otherwise, texts):
        yield f"{word}: this run will be neither pass nor fail"
        yield from _reasons(changed, otherwise, texts)
        if otherwise:
            yield "  to train the recipe whole, begin another run: run_id=NAME"


def _texts(facts: Mapping[str, Any], splits: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """How the splits, as data.json describes them, differ from those of the published text."""
    num_tokens = {split: described["num_tokens"] for split, described in splits.items()}
    return list(other_text(facts.get("tokens"), num_tokens))


def _measured_before(run: Run, of: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """The numbers by other methods that the run's record has of the same: the best checkpoint, by
    its step, and the texts, by their hashes. Measuring them may take hours."""
    record: dict[str, Any] = {}
    with suppress(UserError):  # damaged: as if there were none
        record = run.read(FILE)
    same = of["step"] is not None and all(record.get(key) == of[key] for key in of)
    return record.get("further", {}) if same else {}


def _rows(
    facts: Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
    further: Mapping[str, Mapping[str, float]],
    own: str,
) -> Iterator[dict[str, Any]]:
    """Each number with the paper's, if it has one: first those in the paper's own protocol."""
    metric, tolerance = facts.get("metric", "perplexity"), facts.get("tolerance", 1.0)
    for result in results:
        paper = facts.get(result["split"]) if result["protocol"] == own else None
        ours = in_metric(metric, result)
        yield {
            "number": result["split"],
            "protocol": result["protocol"],
            "num_lanes": result["num_lanes"],
            "paper": paper,
            "ours": ours,
            "reached": None if paper is None else reaches(ours, paper, tolerance),
        }
    for name, pair in (facts.get("further") or {}).items():
        for split, paper in zip(("valid", "test"), pair, strict=True):
            found = further.get(name, {}).get(split)
            if paper is not None or found is not None:
                # Reported beside the plain numbers, on which alone the verdict is.
                yield {
                    "number": f"{split}, {name.replace('_', ' ')}",
                    "protocol": own,
                    "num_lanes": None,
                    "paper": paper,
                    "ours": found,
                    "reached": None,
                }


def table(record: Mapping[str, Any]) -> Table:
    """A record's numbers for people: paper, ours, tolerance, pass or fail."""
    metric = NAMES.get(record["metric"], record["metric"])
    shown = Table(metric, "protocol", "paper", "ours", "tolerance", "", box=None)
    for column in shown.columns[2:5]:
        column.justify = "right"
    whole = record["verdict"] in ("pass", "fail")
    for row in record["rows"]:
        judged = row["reached"] is not None
        word = {True: "pass", False: "fail"}[bool(row["reached"])] if whole else record["verdict"]
        protocol = row["protocol"]
        if row["num_lanes"] and protocol == "stream":
            protocol += f", {counted(row['num_lanes'], 'lane')}"
        shown.add_row(
            row["number"],
            protocol,
            number(row["paper"], record["metric"]),
            number(row["ours"], record["metric"], "not measured"),
            f"{record['tolerance']:g}" if judged else "",
            word if judged else "",
        )
    return shown


def number(value: float | None, metric: str, absent: str = "") -> str:
    """A number as papers write those of its metric."""
    return absent if value is None else f"{value:,.{3 if metric == 'bits_per_character' else 2}f}"


def sentences(record: Mapping[str, Any]) -> Iterator[str]:
    """What the table does not say: why a run may not be compared, seed and cost."""
    yield f"{record['verdict']}: {record['recipe']} by {record['run']}, against {record['source']}"
    yield from _reasons(record["changed"], record["partly"], record["texts"])
    yield f"seed {record['seed']}; {in_words(record['cost'])}"


def _reasons(
    changed: Mapping[str, Sequence[Any]],
    partly: Mapping[str, Sequence[Any]],
    texts: Sequence[str],
) -> Iterator[str]:
    for pairs, where in ((changed, "the run"), (partly, "a part of the run")):
        for key, (theirs, ours) in pairs.items():
            yield f"  {key} is {_said(theirs)} in the recipe, {_said(ours)} in {where}"
    yield from (f"  {text}" for text in texts)


def _said(value: object) -> str:
    return "not set" if value is None else str(value)
