"""The table of several models on a suite."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

# Groups beyond these are in the files only, unless there are no levels above them.
FEW_GROUPS = 12
MANY_GROUPS = 100


def table(result: Mapping[str, Any]) -> Table:
    """Accuracy with its interval, a column for each model; others' models have no interval."""
    runs, others = result["runs"], result["references"]
    caption = f"published: {', '.join(others)}" if others else None
    made = Table("accuracy, %", caption=caption, pad_edge=False)
    for each in runs:
        made.add_column(f"{each['run']}\n{each['checkpoint']}", justify="right")
    for model in others:
        made.add_column(model, justify="right")
    for column in made.columns:
        column.no_wrap = True

    def add(label: str, *path: str) -> None:
        cells = [_cell(_within(each, path)) for each in runs]
        published = [f"{100 * _within(each, path):.1f}" for each in others.values()]
        made.add_row(label, *cells, *published)

    add("overall", "overall")
    levels: Mapping[str, Mapping[str, Any]] = runs[0]["levels"]
    groups = runs[0]["groups"]
    sections: dict[str, list[tuple[str, ...]]] = {
        level: [("levels", level, label) for label in levels[level]] for level in levels
    }
    if 1 < len(groups) <= (FEW_GROUPS if levels else MANY_GROUPS):
        sections["group"] = [("groups", group) for group in groups]
    for title, paths in sections.items():
        made.add_section()
        made.add_row(Text(title, style="italic"))
        for path in paths:
            add(f"  {path[-1]}", *path)
    made.add_section()
    blank = [""] * len(others)
    overall = [each["overall"] for each in runs]
    made.add_row("items", *(f"{each['num_items']:,}" for each in overall), *blank)
    made.add_row("ties (counted as wrong)", *(f"{each['num_ties']:,}" for each in overall), *blank)
    unknown = [f"{each['num_unknown'] / each['num_items']:.1%}" for each in overall]
    made.add_row("items with unknown words", *unknown, *blank)
    made.add_row(
        "sentences per second", *(f"{each['sentences_per_second']:,.0f}" for each in runs), *blank
    )
    return made


def _within(value: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        value = value[key]
    return value


def _cell(found: Mapping[str, float]) -> str:
    accuracy, low, high = (100 * found[key] for key in ("accuracy", "low", "high"))
    return f"{accuracy:.1f} ({low:.1f}–{high:.1f})"
