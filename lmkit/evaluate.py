"""`lmkit evaluate`: how well a trained model predicts a split, or a text of one's own."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from lmkit.assembly import make_source
from lmkit.errors import UserError
from lmkit.identity import recorded
from lmkit.lanes import Protocol
from lmkit.metrics import bits_per_byte, perplexity
from lmkit.paths import readable
from lmkit.run import Run, no_checkpoint
from lmkit.store import TokenStore, prepare
from lmkit.text import Text, read_text
from lmkit.tokenizer import Tokenizer
from lmkit.trained import POSITIONS, TrainedModel

log = logging.getLogger(__name__)

NUM_LANES = 64


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


def measure(
    trained: TrainedModel, store: TokenStore | Text, protocol: Protocol, num_lanes: int | None
) -> dict[str, Any]:
    """nll, perplexity and, where the tokenizer loses nothing, bits per byte under a protocol."""
    units = {
        "document": store.num_documents,
        "sentence": store.num_lines,
        "stream": store.num_tokens,
    }[protocol]
    bptt = None
    as_in_training = isinstance(store, TokenStore) and protocol == trained.protocol
    if num_lanes is None and as_in_training and trained.shape:
        num_lanes, bptt = trained.shape
    num_lanes = min(num_lanes or (1 if protocol == "stream" else NUM_LANES), units)
    loader = trained.loader(store, protocol, num_lanes, num_lanes * bptt if bptt else POSITIONS)
    began = time.perf_counter()
    with _progress() as bar:
        task = bar.add_task(protocol, total=store.num_tokens, rate="")
        for nll_sum, num_tokens in trained.nll_sums(loader):  # noqa: B007 - the last one counts
            rate = num_tokens / (time.perf_counter() - began)
            bar.update(task, completed=num_tokens, rate=f"{rate:,.0f} tokens/s")
    assert num_tokens == store.num_tokens
    nll = nll_sum / num_tokens
    lossless = trained.tokenizer.lossless and store.num_bytes
    return {
        "protocol": protocol,
        "num_lanes": num_lanes,
        "num_tokens": num_tokens,
        "num_unknown": store.num_unknown,
        "nll": nll,
        "perplexity": perplexity(nll),
        "bits_per_byte": bits_per_byte(nll_sum, store.num_bytes) if lossless else None,
        "tokens_per_second": num_tokens / (time.perf_counter() - began),
    }


def _text(
    run: Run,
    config: Mapping[str, Any],
    tokenizer: Tokenizer,
    split: str | None,
    file: str | None,
    text: str | None,
    protocol: Protocol,
) -> tuple[dict[str, str], TokenStore | Text]:
    """What to evaluate on, and what the result calls it."""
    by_line = protocol == "sentence"
    if file is not None or text is not None:
        given = read_text(text, file)
        if split is not None:
            raise UserError(
                f"split={split} and {'file' if text is None else 'text'} are both given: "
                "leave one of them out"
            )
        named = {} if file is None else {"file": readable(str(Path(file).absolute()))}
        return named or {"text": "given"}, Text.of(given, tokenizer, by_line)
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
    # Another text than the run's may only be a line at a time where that was the whole.
    lines = own.get("protocol") == "sentence" and not tokenizer.lines_alone
    if store.sha256 != then and config["data"] == own and store.by_line == lines:
        log.warning("%s has changed since %s was trained: its text is another one", split, run.id)
    return {"split": split}, store


def _progress() -> Progress:
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        TextColumn("{task.percentage:.0f}% {task.fields[rate]}"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


def _table(result: Mapping[str, Any]) -> Table:
    """One column for each protocol."""
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
