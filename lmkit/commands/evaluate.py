"""`lmkit evaluate`: how well a trained model predicts a split, or a text of one's own."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from rich.console import Console
from rich.table import Table

from lmkit.assembly import make_source
from lmkit.errors import UserError
from lmkit.inference import Text, TrainedModel
from lmkit.inference.evaluation import measure
from lmkit.inference.identity import recorded
from lmkit.inference.text import read_text
from lmkit.run import Run, no_checkpoint
from lmkit.store import TokenStore, prepare
from lmkit.system.paths import readable
from lmkit.tokenizer import Tokenizer
from lmkit.windows.lanes import Protocol

log = logging.getLogger(__name__)


def evaluate(
    run: Annotated[Run, no_checkpoint],
    config: Mapping[str, Any],
    *,
    split: str | None = None,
    file: str | None = None,
    text: str | None = None,
    protocol: Protocol | list[Protocol] | None = None,
    num_lanes: int | None = None,
    checkpoint: str = "best",
) -> dict[str, Any]:
    """Measure nll and perplexity on a split or a text file, under one protocol or several.

        lmkit evaluate latest
        lmkit evaluate latest split=valid protocol=[document,stream]
        lmkit evaluate latest text="The cat sat on the mat."

    split: test unless given. file, text: read as one document, in the place of a split.
    protocol: the run's own unless given; [document,stream] puts two side by side.
    num_lanes: texts read at once; unless given, those of the run's validations
    (data.eval_batch_size) on its splits under its own protocol, so that the figures are the
    training's to the last digit; else 64. Only under stream does more than rounding depend on it,
    and there it is else 1.
    checkpoint: best, last or another of the run's.
    config: that of the run, of which data, kernels, threads, trainer.accelerator and
    trainer.precision are used
    """
    if num_lanes is not None and num_lanes < 1:
        raise UserError(f"num_lanes={num_lanes}: must be at least 1")
    trained = TrainedModel.load(run, config, checkpoint)
    protocols = protocol if isinstance(protocol, list) else [protocol or trained.protocol]
    if not protocols:
        raise UserError("protocol=[]: name at least one")
    texts = {
        name: _text(run, config, trained.tokenizer, split, file, text, name) for name in protocols
    }
    where, store = texts[protocols[0]]
    result = {
        "run": f"{run.name}/{run.id}",
        "checkpoint": trained.checkpoint.stem if trained.checkpoint else None,
        **where,
        "precision": trained.precision,
        "num_documents": store.num_documents,
        "num_tokens": store.num_tokens,
        "num_unknown": store.num_unknown,
        "num_bytes": store.num_bytes,
        "results": [measure(trained, texts[name][1], name, num_lanes) for name in protocols],
    }
    console = Console()
    what = where.get("split") or where.get("file") or "the given text"
    console.print(
        f"{result['run']} ({result['checkpoint']}) on {what}", highlight=False, markup=False
    )
    console.print(_table(result))
    return result


def _text(
    run: Run,
    config: Mapping[str, Any],
    tokenizer: Tokenizer,
    split: str | None,
    file: str | None,
    text: str | None,
    protocol: Protocol,
) -> tuple[dict[str, str], TokenStore | Text]:
    """The text to evaluate on, and how the result names it."""
    by_line = protocol == "sentence"
    if file is not None or text is not None:
        content = read_text(text, file)
        if split is not None:
            raise UserError(
                f"split={split} and {'file' if text is None else 'text'} are both given: "
                "leave one of them out"
            )
        named = {} if file is None else {"file": readable(str(Path(file).absolute()))}
        return named or {"text": "given"}, Text.of(content, tokenizer, by_line)
    split = split or "test"
    source = make_source(config)
    if split not in source.splits:
        raise UserError(f"split={split}: the data has {', '.join(source.splits)}")
    cache = run.path.parents[1] / ".cache"
    prepared = prepare(source, tokenizer, cache, splits=[split], by_line=by_line)
    store = prepared.stores[split]
    splits = recorded(run).get("splits", {})
    then = splits.get(split, {}).get("sha256", store.sha256)
    own = run.config()["data"]
    # A hash may also differ only because one was encoded line by line and the other as a whole.
    lines = own.get("protocol") == "sentence" and not tokenizer.lines_alone
    if store.sha256 != then and config["data"] == own and store.by_line == lines:
        log.warning("%s has changed since %s was trained: its text is another one", split, run.id)
    return {"split": split}, store


def _table(result: Mapping[str, Any]) -> Table:
    """The table of results, with one column for each protocol."""
    measured: Sequence[Mapping[str, Any]] = result["results"]
    table = Table("", *(each["protocol"] for each in measured))
    for column in table.columns[1:]:
        column.justify = "right"
    table.add_row("documents", *(f"{result['num_documents']:,}" for _ in measured))
    for label, key in (("tokens", "num_tokens"), ("unknown tokens", "num_unknown")):
        table.add_row(label, *(f"{each[key]:,}" for each in measured))
    table.add_section()
    for label, key, form in (
        ("lanes", "num_lanes", ",d"),
        ("nll (nats per token)", "nll", ".5f"),
        ("perplexity", "perplexity", ",.2f"),
        ("bits per byte", "bits_per_byte", ".4f"),
        ("tokens per second", "tokens_per_second", ",.0f"),
    ):
        values = [each[key] for each in measured]
        if None not in values:
            table.add_row(label, *(format(value, form) for value in values))
    return table
