"""BLiMP's format (Warstadt et al. 2020): a paradigm is a file of JSON lines, a pair in each."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from lmkit.corpus.finding import find_files
from lmkit.corpus.reading import text_lines
from lmkit.errors import UserError
from lmkit.suite.items import GOOD_END_IS_LIKELIER, Item, Suite, member, pair, sentence

Method = Literal["simple", "one_prefix", "two_prefix"]
FLAGS = {method: f"{method}_method" for method in get_args(Method)} | {"simple": "simple_LM_method"}
# By method and condition the columns that are compared; the sum is over the last one.
COLUMNS: dict[str, dict[str, tuple[str, ...]]] = {
    "simple": {"good": ("sentence_good",), "bad": ("sentence_bad",)},
    "one_prefix": {
        "good": ("one_prefix_prefix", "one_prefix_word_good"),
        "bad": ("one_prefix_prefix", "one_prefix_word_bad"),
    },
    "two_prefix": {
        "good": ("two_prefix_prefix_good", "two_prefix_word"),
        "bad": ("two_prefix_prefix_bad", "two_prefix_word"),
    },
}
LEVELS = {"field": "field", "phenomenon": "linguistics_term"}
SUMMARY = "models_summary.json"


def read(path: str, method: Method = "simple") -> Suite:
    """The suite of a .jsonl file or a directory of them; raises UserError.

    method: `simple` compares whole sentences, `one_prefix` the probabilities of two words after the
    same words, `two_prefix` of one word after different ones. A paradigm's own flags say which of
    them it has.
    """
    files = find_files(path, "path", (".jsonl", ".jsonl.gz", ".jsonl.zst"))
    items: list[Item] = []
    levels: dict[str, dict[str, str]] = {level: {} for level in LEVELS}
    skipped: dict[str, None] = {}
    for file in files.values():
        for number, record in _records(file):
            where = f"line {number}"
            group = str(record.get("UID", file.name.partition(".")[0]))
            if not record.get(FLAGS[method], method == "simple"):
                skipped[group] = None
                continue
            items.append(_item(record, method, group, file, where))
            for level, column in LEVELS.items():
                if column in record:
                    levels[level][group] = str(record[column])
    if not items:
        raise UserError(f"path={path} has no paradigm with method={method}: {_having(skipped)}")
    references: dict[str, dict[str, float]] = {}
    for directory in dict.fromkeys(file.parent for file in files.values()):
        if method == "simple" and (directory / SUMMARY).is_file():
            references |= _references(directory / SUMMARY)
    whole = {name: groups for name, groups in levels.items() if len(set(groups.values())) > 1}
    return Suite(f"blimp-{method}", tuple(items), whole, True, references, tuple(skipped))


def _having(skipped: Mapping[str, None]) -> str:
    return f"none of its {len(skipped)} has it" if skipped else "it has no pair at all"


def _item(record: dict[str, Any], method: str, group: str, path: Path, where: str) -> Item:
    texts = {
        condition: [
            sentence(member(record, column, path, where), path, f"{where}, {column!r}")
            for column in columns
        ]
        for condition, columns in COLUMNS[method].items()
    }
    id = str(record.get("pairID", where.removeprefix("line ")))
    if method == "simple":
        return pair(id, group, texts["good"][0], texts["bad"][0])
    regions = {name: dict(enumerate(parts, 1)) for name, parts in texts.items()}
    return Item(id, group, regions, (GOOD_END_IS_LIKELIER,))


def _records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The number and the object of each line; blank lines are skipped."""
    for number, line in enumerate(text_lines(path), 1):
        if line.isspace():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(
                f"{path}, line {number} is not JSON: {error.msg} at column {error.colno}; "
                "suite=blimp expects a JSON object in each line"
            ) from None
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}, line {number} is no object of BLiMP's: {error}") from None
        if not isinstance(record, dict):
            raise UserError(
                f"{path}, line {number} is {type(record).__name__}, not an object with "
                "sentence_good and sentence_bad"
            )
        yield number, record


def _references(path: Path) -> dict[str, dict[str, float]]:
    """By model its accuracy by paradigm; rows of `overall` are left out, as they are means."""
    models: dict[str, dict[str, float]] = {}
    for number, record in _records(path):
        uid = member(record, "UID", path, f"line {number}")
        for model, value in record.items():
            if uid != "overall" and isinstance(value, float) and 0 <= value <= 1:
                models.setdefault(model, {})[str(uid)] = value
    return models
