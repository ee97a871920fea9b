"""SyntaxGym's format (Hu et al. 2020): a suite is a JSON file of items, conditions and regions."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lmkit.corpus.finding import find_files
from lmkit.corpus.reading import text_lines
from lmkit.errors import UserError
from lmkit.suite.formula import Formula
from lmkit.suite.items import Item, Regions, Suite, member, near, sentence

# The circuits of Hu et al. 2020, by the beginning of a suite's name.
CIRCUITS = {
    "number": "Agreement",
    "npi": "Licensing",
    "reflexive": "Licensing",
    "mvrr": "Garden-Path Effects",
    "npz": "Garden-Path Effects",
    "subordination": "Gross Syntactic State",
    "center_embed": "Center Embedding",
    "fgd": "Long-Distance Dependencies",
    "cleft": "Long-Distance Dependencies",
}


def read(path: str) -> Suite:
    """The suites of a .json file or a directory of them, each a group; raises UserError."""
    items: list[Item] = []
    names: set[str] = set()
    circuits: dict[str, str] = {}
    for file in find_files(path, "path", (".json", ".json.gz", ".json.zst")).values():
        content = "".join(text_lines(file))
        group, found = _suite(_parsed(content, file), content, file)
        if group in names:
            raise UserError(f"{file} has the name of another suite, {group!r}: rename one of them")
        names.add(group)
        if circuit := next((c for start, c in CIRCUITS.items() if group.startswith(start)), None):
            circuits[group] = circuit
        items += found
    levels = {"circuit": circuits} if len(set(circuits.values())) > 1 else {}
    return Suite("syntaxgym", tuple(items), levels, is_pairs=False)


def _parsed(content: str, path: Path) -> dict[str, Any]:
    try:
        suite = json.loads(content)
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path}, line {error.lineno} is not JSON: {error.msg} at column {error.colno}"
        ) from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is no suite of SyntaxGym's: {error}") from None
    return _object(suite, path, "the file")


def _suite(suite: dict[str, Any], content: str, path: Path) -> tuple[str, list[Item]]:
    """The name and the items of a suite."""
    meta = _object(suite.get("meta", {}), path, "'meta'")
    name = str(meta.get("name", path.name.partition(".")[0]))
    if (metric := meta.get("metric", "sum")) != "sum":
        raise UserError(
            f"{path}, 'meta' has the metric {metric!r}: only 'sum' is known, of the "
            "surprisals of a region's tokens"
        )
    formulas = tuple(
        _formula(each, content, path, f"prediction {number}")
        for number, each in enumerate(_list(suite, "predictions", path, "the file"), 1)
    )
    items = []
    for index, each in enumerate(_list(suite, "items", path, "the file"), 1):
        record = _object(each, path, f"item {index}")
        number = record.get("item_number", index)
        conditions = _conditions(record, path, f"item {number}")
        for prediction, formula in enumerate(formulas, 1):
            _check(formula, conditions, path, f"prediction {prediction}", f"item {number}")
        items.append(Item(str(number), name, conditions, formulas))
    return name, items


def _formula(prediction: object, content: str, path: Path, where: str) -> Formula:
    text = member(_object(prediction, path, where), "formula", path, where)
    if not isinstance(text, str):
        raise UserError(f"{path}, {where} has a formula that is {type(text).__name__}, not text")
    try:
        return Formula.parse(text)
    except UserError as error:
        written = content.find(json.dumps(text))
        line = f", line {content.count(chr(10), 0, written) + 1}" if written >= 0 else ""
        raise UserError(
            f"{path}{line}, {where}: the formula {text!r} cannot be read; {error}"
        ) from None


def _conditions(record: dict[str, Any], path: Path, where: str) -> dict[str, Regions]:
    """The regions of the sentence of each condition of an item."""
    conditions: dict[str, Regions] = {}
    for each in _list(record, "conditions", path, where):
        condition = _object(each, path, f"{where}, a condition")
        name = str(member(condition, "condition_name", path, f"{where}, a condition")).strip()
        here = f"{where}, condition {name!r}"
        if name in conditions:
            raise UserError(f"{path}, {here} is there twice")
        conditions[name] = regions = {}
        for entry in _list(condition, "regions", path, here):
            region = _object(entry, path, f"{here}, a region")
            number = member(region, "region_number", path, f"{here}, a region")
            if not isinstance(number, int) or number in regions:
                raise UserError(f"{path}, {here}: region_number {number!r} is no number of its own")
            content = member(region, "content", path, f"{here}, region {number}")
            regions[number] = sentence(content, path, f"{here}, region {number}", may_be_empty=True)
        if not any(regions.values()):
            raise UserError(f"{path}, {here} is empty: expected a sentence")
    return conditions


def _check(
    formula: Formula, conditions: Mapping[str, Regions], path: Path, which: str, where: str
) -> None:
    """Raise UserError if an item lacks a region that a formula names."""
    for region in formula.regions():
        if region.condition not in conditions:
            raise UserError(
                f"{path}, {where} has no condition {region.condition!r}, which {which} names; "
                f"{near(region.condition, conditions)}"
            )
        numbers = conditions[region.condition]
        if region.number is not None and region.number not in numbers:
            raise UserError(
                f"{path}, {where}, condition {region.condition!r} has no region {region.number}, "
                f"which {which} names; it has {', '.join(map(str, numbers))}"
            )


def _object(value: object, path: Path, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"{path}, {where} is {type(value).__name__}, not an object of SyntaxGym's")
    return value


def _list(record: dict[str, Any], key: str, path: Path, where: str) -> Sequence[object]:
    """A member that is a list with something in it."""
    value = member(record, key, path, where)
    if not isinstance(value, list) or not value:
        found = "empty" if value == [] else type(value).__name__
        raise UserError(f"{path}, {where} has {key!r} that is {found}: expected a list")
    return value
