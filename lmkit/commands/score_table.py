"""`lmkit score table=`: a table of items in, a table of their words out."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from lmkit.corpus.finding import compression
from lmkit.errors import UserError
from lmkit.inference import TrainedModel, table_files
from lmkit.inference.table import Layout, tabulate
from lmkit.run import Run
from lmkit.run.checkpoints import read_manifest
from lmkit.system.wording import counted

log = logging.getLogger(__name__)

MUCH_TEXT = 10**9  # characters, in a table that is written
# How R reads each format, and pandas.
READERS = {
    ".csv": ("readr::read_csv({})", "pandas.read_csv({})"),
    ".tsv": ("readr::read_tsv({})", 'pandas.read_csv({}, sep="\\t")'),
    ".parquet": ("arrow::read_parquet({})", "pandas.read_parquet({})"),
    ".jsonl": ("jsonlite::stream_in(file({}))", "pandas.read_json({}, lines=True)"),
}
READERS |= {".tab": READERS[".tsv"], ".ndjson": READERS[".jsonl"]}
# Words that pandas takes for a missing value; R does so with NA alone.
MISSING = (
    *("NA", "N/A", "n/a", "<NA>", "#N/A", "#N/A N/A", "#NA", "NULL", "null", "None"),
    *("NaN", "nan", "-NaN", "-nan", "1.#IND", "-1.#IND", "1.#QNAN", "-1.#QNAN"),
)


def score_table(
    run: Run,
    config: Mapping[str, Any],
    checkpoint: str,
    layout: Layout,
    table: str,
    out: str | None,
) -> dict[str, Any]:
    """Write a row for each word of a table's texts, and print what was written and how to read it.

    Raises UserError for mistakes in the table, before anything is computed."""
    items = table_files.read_items(table)
    path = table_files.check_out(out or _beside(items.path), items.table)
    trained = TrainedModel.load(run, config, checkpoint)
    began = time.perf_counter()
    words = tabulate(trained, items.table, layout, str(items.path), items.row)
    seconds = time.perf_counter() - began
    _warn_of_size(items.table.column(layout.text_column), words.rows)
    table_files.write_table(path, items.table, words.rows, words.columns)
    best = trained.checkpoint
    result = {
        "run": f"{run.name}/{run.id}",
        "checkpoint": best.stem if best else None,
        "step": read_manifest(best).get("step") if best else None,
        "protocol": "sentence" if layout.by_line(trained) else "document",
        "precision": trained.precision,
        "table": str(items.path),
        "out": str(path),
        "num_rows": items.table.num_rows,
        "num_texts": words.num_texts,
        "num_words": len(words.rows),
        "num_tokens": words.num_tokens,
        "num_unknown": words.num_unknown,
        "tokens_per_second": words.num_tokens / seconds,
    }
    _report(result, path, words.columns.column(layout.prefix + "word"))
    return result


def _warn_of_size(texts: pa.ChunkedArray, rows: npt.NDArray[np.int64]) -> None:
    """Warn if the texts, each repeated for its words, take much room."""
    lengths = np.array([len(text) for text in texts.to_pylist()])
    if (size := int(lengths[rows].sum())) > MUCH_TEXT:
        log.warning(
            "the texts, repeated for each of their words, have %.1f GB: give each sentence a row "
            "of its own, and the story a column, as context_column=story",
            size / 1e9,
        )


def _beside(path: Path) -> str:
    """NAME-words.SUFFIX for a table NAME.SUFFIX, which may be compressed."""
    name = Path(path.name.removesuffix(compression(path.name)))
    return str(path.with_name(f"{name.stem}-words{name.suffix}"))


def _report(result: Mapping[str, Any], path: Path, words: pa.ChunkedArray) -> None:
    """Print the counts and how pandas and R read the table."""
    print(
        f"{path}: {counted(result['num_words'], 'word')} ({result['num_unknown']:,} unknown) in "
        f"{counted(result['num_rows'], 'row')}, {counted(result['num_tokens'], 'token')}, "
        f"{result['tokens_per_second']:,.0f} tokens/s"
    )
    suffix = path.suffix.lower()
    for_r, for_pandas = READERS[suffix]
    quoted = '"' + str(path).replace("\\", "\\\\").replace('"', '\\"') + '"'
    if suffix in table_files.DELIMITERS:
        present = [word for word in MISSING if pc.any(pc.equal(words, word)).as_py()]
        if present:
            for_pandas = for_pandas.replace("{}", '{}, keep_default_na=False, na_values=[""]')
            for_r = for_r.replace("{}", '{}, na = ""') if "NA" in present else for_r
            log.warning(
                "%s would take %s for a missing value, here a word: read the table as below",
                *("pandas and R" if "NA" in present else "pandas", " and ".join(present)),
            )
    print(f"  pandas: {for_pandas.format(quoted)}\n  R:      {for_r.format(quoted)}")


def check_unused(layout: Layout, out: str | None) -> None:
    """Raise UserError if keys of a table are set, but no table."""
    default = Layout()
    unused = [key for key in vars(default) if getattr(layout, key) != getattr(default, key)]
    if unused := [*unused, *(["out"] if out is not None else [])]:
        raise UserError(f"{' and '.join(unused)}: only with table=")
