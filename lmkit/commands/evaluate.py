"""`lmkit evaluate`: how well a trained model predicts a text, or does on a suite of tests."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from lmkit.assembly import make_source
from lmkit.errors import UserError
from lmkit.inference import Text, TrainedModel
from lmkit.inference.evaluation import measure
from lmkit.inference.identity import recorded
from lmkit.inference.milestones import ALL, draw_curve, milestones
from lmkit.inference.text import read_text
from lmkit.run import Run, no_checkpoint
from lmkit.store import TokenStore, prepare
from lmkit.suite import Reading, Source, compare
from lmkit.suite.blimp import Method
from lmkit.suite.reading import Format
from lmkit.suite.report import table as accuracy_table
from lmkit.suite.spelling import Punctuation
from lmkit.system.files import strict_json, write_atomically
from lmkit.system.paths import readable
from lmkit.tokenizer import Tokenizer
from lmkit.windows.lanes import Protocol

log = logging.getLogger(__name__)

WIDEST = 10_000  # characters of a table


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
    suite: Format | None = None,
    path: str | None = None,
    method: Method | None = None,
    good: str | None = None,
    bad: str | None = None,
    group: str | None = None,
    others: str | list[str] | None = None,
    punctuation: Punctuation = "as_is",
    lower: bool = False,
    end: bool = False,
) -> dict[str, Any]:
    """Measure nll and perplexity on a text, or accuracy on a suite of tests.

        lmkit evaluate latest
        lmkit evaluate latest split=valid protocol=[document,stream]
        lmkit evaluate latest text="The cat sat on the mat."
        lmkit evaluate latest suite=blimp path=blimp punctuation=apart
        lmkit evaluate latest suite=table path=pairs.csv group=construction others=[first,second]

    A text is a split, a file or a text, read under one protocol or several. The sentences of a
    suite are each read from the zero state, in full precision unless trainer.precision= says
    otherwise; its files go into the run directory, under suites/.
    split: test unless given. file, text: read as one document, in the place of a split.
    protocol: the run's own unless given; [document,stream] puts two side by side.
    num_lanes: texts read at once; unless given, those of the run's validations
    (data.eval_batch_size) on its splits under its own protocol, so that the figures are the
    training's to the last digit; else 64. Only under stream does more than rounding depend on it,
    and there it is else 1.
    checkpoint: best, last or another of the run's; all: each that callbacks.milestones kept, or
    else each that there is, with a curve.
    suite: blimp (JSON lines), syntaxgym (JSON), table (CSV or TSV), or lines (a good sentence and
    a bad one in turn).
    path: file or directory of the suite.
    method: of BLiMP: whole sentences (simple, unless given), one_prefix or two_prefix.
    good, bad: columns of a table; good and bad unless given.
    group: column of a table that names groups; each file is one unless given.
    others: more runs, named as RUN is, to put beside it.
    punctuation: apart sets it apart from the words, as the model's corpus has it.
    lower: read the sentences in lower case.
    end: whether the closing <eos> counts in the sum of a sentence.
    config: that of the run, of which data, kernels, threads, trainer.accelerator and
    trainer.precision are used
    """
    if checkpoint == ALL:
        settings = {key: value for key, value in locals().items() if key in KEYS}
        return _over_all(run, settings, partial(evaluate, run, config, **settings))
    texts_alone = {"split": split, "file": file, "text": text, "protocol": protocol}
    suites_alone: dict[str, Any] = {
        **{"path": path, "method": method, "good": good, "bad": bad, "group": group},
        **{"others": others, "end": end, "lower": lower},
        "punctuation": None if punctuation == "as_is" else punctuation,
    }
    if suite is not None:
        _refuse({**texts_alone, "num_lanes": num_lanes}, f"with suite={suite}")
        source = Source(suite, path, method, good, bad, group)
        reading = Reading(punctuation, lower, end)
        beside = [others] if isinstance(others, str) else others or []
        return _on_suite(run, beside, config, checkpoint, source, reading)
    _refuse(suites_alone, "without suite=")
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


# The keys that say what is evaluated, and how.
KEYS = frozenset(evaluate.__kwdefaults__ or {}) - {"checkpoint"}


def _over_all(
    run: Run, settings: Mapping[str, Any], one: Callable[..., dict[str, Any]]
) -> dict[str, Any]:
    """The results of all checkpoints of a run; a curve over them goes into `curves/`."""
    run.check_links()
    points = milestones(run)
    results = [one(checkpoint=point.name) for point in points]
    what, values = _curve(results)
    digest = hashlib.sha256(strict_json(settings).encode()).hexdigest()[:8]
    subject = settings["suite"] or settings["split"] or ("test" if _on_split(settings) else "text")
    path = run.path / "curves" / f"{subject}-{digest}.png"
    draw_curve(path, points, values, what)
    result = {
        "run": f"{run.name}/{run.id}",
        "checkpoints": [
            {**point._asdict(), "result": each} for point, each in zip(points, results, strict=True)
        ],
        "curve": str(path),
    }
    write_atomically(path.with_suffix(".json"), strict_json(result, indent=2).encode())
    table = Table("checkpoint", *(f"{name}, {what}" for name in values))
    for number, point in enumerate(points):
        table.add_row(point.name, *(f"{line[number]:,.2f}" for line in values.values()))
    Console().print(table)
    print(path)
    return result


def _on_split(settings: Mapping[str, Any]) -> bool:
    return settings["file"] is None and settings["text"] is None


def _curve(results: Sequence[Mapping[str, Any]]) -> tuple[str, dict[str, list[float]]]:
    """What was measured, and its values: of a suite the accuracy of each run, of a text the
    perplexity under each protocol."""
    if "runs" in results[0]:
        names = [each["run"] for each in results[0]["runs"]]
        rows = [[100 * each["overall"]["accuracy"] for each in one["runs"]] for one in results]
        return "accuracy, %", dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))
    names = [each["protocol"] for each in results[0]["results"]]
    rows = [[each["perplexity"] for each in one["results"]] for one in results]
    return "perplexity", dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))


def _refuse(keys: Mapping[str, Any], why: str) -> None:
    """Raise UserError for keys that are set but have no effect."""
    given = [key for key, value in keys.items() if value is not None and value is not False]
    if given:
        raise UserError(f"{', '.join(given)}: no effect {why}; leave it out")


def _on_suite(
    run: Run,
    others: list[str],
    config: Mapping[str, Any],
    checkpoint: str,
    source: Source,
    reading: Reading,
) -> dict[str, Any]:
    """The result of a suite, which is printed as a table."""
    result = compare(run, others, config, checkpoint, source, reading)
    table, console = accuracy_table(result), Console()
    if not console.is_terminal:  # a file has room for all columns
        options = console.options.update(max_width=WIDEST)
        console.width = max(Measurement.get(console, options, table).maximum, 80)
    title = f"{result['suite']}: {result['num_items']:,} items of {source.path}"
    console.print(title, highlight=False, markup=False, soft_wrap=True)
    console.print(table)
    print("\n".join(result["files"]))
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
