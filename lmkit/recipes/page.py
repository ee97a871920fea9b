"""The page of results: all recipes with their numbers, made anew from records kept beside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lmkit.errors import UserError, cannot_write
from lmkit.recipes.cost import in_words
from lmkit.recipes.report import NAMES, number
from lmkit.system.files import strict_json, write_atomically
from lmkit.system.paths import nearby
from lmkit.system.regular_file import read_json

MAX_RECORDS = 1 << 24  # bytes
WHOLE = ("pass", "fail")  # verdicts on a whole training, which no other replaces
HEAD = """# Published results, and ours

Made by `lmkit reproduce RECIPE results=FILE`, FILE being this page: do not edit it. How a recipe is
run and judged is in lmkit's docs/recipes.md. Numbers are validation / test, in the paper's own
protocol; *by document* is the same checkpoint with its state reset before each document. Less is
better.

| recipe | metric | paper | tolerance | ours | by document | status |
|---|---|--:|--:|--:|--:|---|
"""
SOURCES = """
## Sources
| recipe | source | text | what it takes | other published numbers |
|---|---|---|---|---|
"""


def check_page(path: Path) -> None:
    """Raise UserError if `update` could not write the page, as far as its path says."""
    if path.suffix != ".md":
        raise UserError(f"results={path}: name a page that ends in .md, as docs/results.md")
    if not path.absolute().parent.is_dir():
        raise UserError(f"results={path}: there is no directory {path.parent}; {nearby(path)}")
    read_records(path.with_suffix(".json"))


def update(
    path: Path, recipes: Mapping[str, Mapping[str, Any]], record: Mapping[str, Any] | None = None
) -> str | None:
    """Write the page anew, and a record into the file of records beside it, `.json` by its suffix.

    A record of a training that was not whole never replaces one of a whole training, of which then
    a sentence tells.
    """
    beside = path.with_suffix(".json")
    records = read_records(beside)
    before = records.get(record["recipe"], {}) if record else {}
    stays = None
    if record and record["verdict"] not in WHOLE and before.get("verdict") in WHOLE:
        stays = f"{path} keeps the whole training {before['run']} ({before['verdict']})"
    elif record:
        records[record["recipe"]] = dict(record)
    ordered = {name: records[name] for name in sorted(records)}
    try:
        write_atomically(beside, (strict_json(ordered, indent=2) + "\n").encode())
        write_atomically(path, rendered(recipes, records).encode())
    except OSError as error:
        raise cannot_write(f"cannot write {path}", path, error, "name another page") from error
    return stays


def read_records(path: Path) -> dict[str, dict[str, Any]]:
    """The records beside a page by recipe; none if there is no such file."""
    try:
        return read_json(path, MAX_RECORDS)
    except FileNotFoundError:
        return {}


def rendered(
    recipes: Mapping[str, Mapping[str, Any]], records: Mapping[str, Mapping[str, Any]]
) -> str:
    """The page's text."""
    rows = (_row(name, config, records.get(name)) for name, config in recipes.items())
    sources = (_source(name, config, records.get(name)) for name, config in recipes.items())
    return "".join([HEAD, *rows, SOURCES, *sources])


def _row(name: str, config: Mapping[str, Any], record: Mapping[str, Any] | None) -> str:
    facts = config["recipe"]
    metric = facts.get("metric", "perplexity")
    ours = by_document = ""
    status = "not yet run"
    if record:
        rows = {(row["number"], row["protocol"]): row["ours"] for row in record["rows"]}
        ours, by_document = (
            _pair(rows.get(("valid", protocol)), rows.get(("test", protocol)), metric)
            for protocol in (record["rows"][0]["protocol"], "document")
        )
        took = in_words(record["cost"])
        status = f"{record['verdict']}: {record['run']}, seed {record['seed']}; {took}"
    paper = _pair(facts.get("valid"), facts.get("test"), metric)
    cells = [
        *(name, NAMES.get(metric, metric), paper, f"{facts.get('tolerance', 1.0):g}"),
        *(ours, by_document, status),
    ]
    return f"| {' | '.join(cells)} |\n"


def _source(name: str, config: Mapping[str, Any], record: Mapping[str, Any] | None) -> str:
    facts = config["recipe"]
    rows = record["rows"] if record else []
    further = _further(facts, {row["number"]: row["ours"] for row in rows})
    cells = [name, facts["source"], facts["text"], facts["cost"], "; ".join(further)]
    return f"| {' | '.join(cells)} |\n"


def _further(facts: Mapping[str, Any], ours: Mapping[str, float | None]) -> Iterator[str]:
    """The paper's numbers of other methods, each with ours if it was measured."""
    metric = facts.get("metric", "perplexity")
    for name, (valid, test) in (facts.get("further") or {}).items():
        method = name.replace("_", " ")
        own_valid, own_test = (ours.get(f"{split}, {method}") for split in ("valid", "test"))
        known = own_valid is not None or own_test is not None
        measured = f" (ours {_pair(own_valid, own_test, metric)})" if known else ""
        yield f"{method} {_pair(valid, test, metric)}{measured}"


def _pair(valid: float | None, test: float | None, metric: str) -> str:
    return f"{number(valid, metric, '-')} / {number(test, metric, '-')}"
