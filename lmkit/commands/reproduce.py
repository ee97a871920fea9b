"""`lmkit reproduce`: trains a recipe and compares its numbers with the published ones."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from lmkit import recipes
from lmkit.config.check import check
from lmkit.config.compose import Composition
from lmkit.config.loggers import grouped
from lmkit.errors import ResultError, UserError
from lmkit.overrides import key_of, names
from lmkit.recipes.report import FILE, NAMES, number, sentences
from lmkit.run import Run
from lmkit.store import Prepared
from lmkit.system.redaction import redact
from lmkit.training.estimate import lasting
from lmkit.training.launch import launch

LISTS = ("outputs", "results")  # the keys that a list of all recipes reads


def reproduce(
    composition: Composition,
    overrides: list[str],
    config_dir: str | None,
    recipe: str = "",
    *,
    further: bool = False,
    results: str | None = None,
) -> dict[str, Any]:
    """Train a published recipe, or go on with it, and compare its numbers with the paper's.

        lmkit reproduce
        lmkit reproduce pytorch_examples_200_tied data.path=wikitext-2
        lmkit reproduce zaremba_small data.path=ptb seed=2 results=docs/results.md

    Without RECIPE, all recipes with their status here. The run is outputs/RECIPE/seed-SEED, unless
    run_id= names another; the same command goes on with one that was stopped. The best checkpoint
    is evaluated in the paper's own protocol and with a reset before each document, and the numbers
    go into its reproduction.json. Exit code 1 if it fails. With a shorter training, other settings
    or another text there is neither pass nor fail, which is said before it begins.
    further: also measure the paper's numbers with a cache or dynamic evaluation, with settings that
    are chosen on valid; on a CPU the latter takes hours.
    results: a page of all results to bring up to date, with a .json of their records beside it.
    config: any may be set, beside data.path those of machine and length above all
    """
    page = None if results is None else Path(results).expanduser()
    if page:
        recipes.check_page(page)
    if not recipe:
        if unread := [each for each in overrides if key_of(each) not in LISTS]:
            raise UserError(
                f"{', '.join(map(redact, unread))}: no effect without a RECIPE; name one before "
                "it, or leave it out to list them all"
            )
        return _list(composition, config_dir, page)
    theirs = recipes.config_of(recipe, config_dir)
    if not composition.mistakes and _lacks_text(composition.config):
        raise UserError(
            f"{recipe} needs data.path: {theirs['recipe']['text']}; "
            f"lmkit reproduce {recipe} data.path=PATH"
        )
    if further and not recipes.methods_of(theirs):
        raise UserError(
            f"further=true: no effect with {recipe}, which has no number with a cache or dynamic "
            "evaluation; leave it out"
        )
    if not names(overrides, "name"):
        composition.config["name"] = recipe  # one that begins with another has that one's
    config, _ = check(composition)
    run_id = config["run_id"] or f"seed-{config['seed']}"
    run = Run.named(config["outputs"], config["name"], run_id)

    def tell(prepared: Prepared) -> None:
        for line in recipes.foretold(theirs, run, config, prepared):
            print(line, file=sys.stderr)

    if launch(run, grouped(config), overrides, tell).keys() <= {"run"}:
        return {}  # one of several processes; the first of them tells
    # A run that has ended keeps its config, also where its text has moved since.
    config = {**run.config(), **{key: config[key] for key in ("data", "trainer", "kernels")}}
    return _compared(run, theirs, config, page, config_dir, further=further)


def _lacks_text(config: Mapping[str, Any]) -> bool:
    return (config.get("data") or {}).get("path") == "???"


def _compared(
    run: Run,
    theirs: Mapping[str, Any],
    config: Mapping[str, Any],
    page: Path | None,
    config_dir: str | None,
    *,
    further: bool,
) -> dict[str, Any]:
    """Evaluate a run that has ended, write and print how it compares with its recipe; config: the
    run's, with the paths and the devices of now."""
    config = {**config, "recipe": theirs["recipe"]}
    record = recipes.reproduction(
        theirs, run, config, recipes.measured(run, config, further=further)
    )
    with run.holding():
        run.write(FILE, record)
    stays = recipes.update(page, recipes.recipes(config_dir), record) if page else None
    Console().print(recipes.table(record))
    print("\n".join([*sentences(record), *([stays] if stays else [])]))
    if record["verdict"] == "fail":
        missed = [row for row in record["rows"] if row["reached"] is False]
        worst = "; ".join(
            f"{row['number']} {number(row['ours'], record['metric'])}, published "
            f"{number(row['paper'], record['metric'])}"
            for row in missed
        )
        raise ResultError(f"{record['recipe']} is not reproduced: {worst}", record)
    return record


def _list(composition: Composition, config_dir: str | None, page: Path | None) -> dict[str, Any]:
    """All recipes with the paper's numbers and their status here."""
    every = recipes.recipes(config_dir)
    if page:
        recipes.update(page, every)
    found = recipes.statuses(every, composition.config["outputs"])
    table = Table("recipe", "valid", "test", "tolerance", "status", box=None)
    for name, status in found.items():
        facts = every[name]["recipe"]
        metric = facts.get("metric", "perplexity")
        table.add_row(
            name,
            *(number(facts.get(split), metric, "-") for split in ("valid", "test")),
            f"{facts.get('tolerance', 1.0):g}" + (f" {NAMES[metric]}" if metric in NAMES else ""),
            _said(status),
        )
    console = Console()
    console.print(table) if console.is_terminal else Console(width=140).print(table)
    print(
        "\nvalid and test are the paper's; lmkit reproduce RECIPE data.path=PATH runs one.\n"
        "Times are estimates: 6 operations for each weight and token, at a share of the speed at\n"
        "which this machine multiplies two matrices."
    )
    return {
        name: {**status._asdict(), "recipe": every[name]["recipe"]}
        for name, status in found.items()
    }


def _said(status: recipes.Status) -> str:
    of = f" by {status.run}" if status.word == "reproduced" else f": {status.run}"
    took = f", about {lasting(status.seconds)}" if status.seconds else ""
    epochs = f", {status.epochs}" if status.epochs else ""
    return f"{status.word}{epochs}{of if status.run else took}"
