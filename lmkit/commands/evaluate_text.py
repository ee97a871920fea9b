"""How well a trained model predicts a text: the part of `lmkit evaluate` that is not of suites."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from lmkit.assembly import make_source
from lmkit.errors import ResultError, UserError
from lmkit.inference import Text, TrainedModel
from lmkit.inference.beside import find_beside, load_beside
from lmkit.inference.cache import check_hidden
from lmkit.inference.dynamic import DivergedError, Pair, learning
from lmkit.inference.evaluation import measure
from lmkit.inference.identity import recorded
from lmkit.inference.mc_dropout import check_dropout
from lmkit.inference.methods import Evaluation, Methods
from lmkit.inference.text import read_text
from lmkit.inference.tuning import check_choice, tuned
from lmkit.run import Run
from lmkit.run.checkpoints import RAW
from lmkit.store import TokenStore, prepare
from lmkit.system.paths import readable
from lmkit.tokenizer import Tokenizer
from lmkit.windows.lanes import Protocol

log = logging.getLogger(__name__)

NO_METHODS = Methods()


@dataclass(frozen=True)
class Reading:
    """What is read, how, and by which methods beside the plain one.

    tune: the split on which settings are chosen, None where they are given.
    """

    split: str | None = None
    file: str | None = None
    text: str | None = None
    protocol: Protocol | list[Protocol] | None = None
    num_lanes: int | None = None
    methods: Methods = NO_METHODS
    tune: str | None = None

    def check(self) -> None:
        """Raise UserError for settings that no text can be read with."""
        if self.num_lanes is not None and self.num_lanes < 1:
            raise UserError(f"num_lanes={self.num_lanes}: must be at least 1")
        if self.protocol == []:
            raise UserError("protocol=[]: name at least one")
        self.methods.check()
        if self.tune == "test":
            raise UserError(
                "tune=test: settings that are chosen on the test split say nothing of its text; "
                "tune=true chooses them on valid"
            )
        if self.tune:
            check_choice(self.methods)


def on_text(
    run: Run, config: Mapping[str, Any], checkpoint: str, reading: Reading
) -> dict[str, Any]:
    """The result of an evaluation on a text, which is printed as a table; where dynamic evaluation
    has diverged, the result has all the rest, and is that of a ResultError."""
    reading.check()
    ensemble = reading.methods.ensemble
    others = find_beside(run, ensemble.runs, "ensemble") if ensemble else []
    trained = TrainedModel.load(run, config, checkpoint)
    raw = RAW if checkpoint.endswith(RAW) else ""
    beside = [load_beside(other, run, config, checkpoint, "ensemble") for other in others]
    for other, each in zip(others, beside, strict=True):
        _check_same_vocabulary(run, trained, other, each)
    asked = reading.protocol or trained.protocol
    protocols = asked if isinstance(asked, list) else [asked]
    texts = {name: _text(run, config, trained.tokenizer, reading, name) for name in protocols}
    _check_methods(trained, config, reading)
    where, store = texts[protocols[0]]
    result: dict[str, Any] = {
        "run": f"{run.name}/{run.id}",
        "checkpoint": trained.checkpoint.stem + raw if trained.checkpoint else None,
        **where,
        "precision": trained.precision,
        "num_documents": store.num_documents,
        "num_tokens": store.num_tokens,
        "num_unknown": store.num_unknown,
        "num_bytes": store.num_bytes,
        "results": [],
    }
    for name in protocols:
        text = texts[name][1]
        measured = measure(trained, text, name, reading.num_lanes)
        result["results"].append(measured)
        if reading.methods.names:
            evaluation = Evaluation(
                trained,
                name,
                num_lanes=reading.num_lanes,
                others=beside,
                train=partial(_split, run, config, trained.tokenizer, "train", name),
            )
            try:
                _add_methods(run, config, evaluation, text, where, reading, measured)
            except DivergedError as error:
                measured["error"] = f"{error}{_advice(reading)}"
    what = where.get("split") or where.get("file") or "the given text"
    console = Console()
    title = f"{result['run']} ({result['checkpoint']}) on {what}"
    console.print(title, highlight=False, markup=False)
    console.print(_table(result))
    for line in _settings_lines(result):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    failed = {each["protocol"]: each["error"] for each in result["results"] if "error" in each}
    if failed:
        under = len(protocols) > 1
        lines = [f"under {name}: {what}" if under else what for name, what in failed.items()]
        raise ResultError("\n".join(lines), result)
    return result


def _advice(reading: Reading) -> str:
    """What else can be done, beside lowering lr, where dynamic evaluation has diverged."""
    dynamic = reading.methods.dynamic
    if reading.tune or dynamic is None:
        return ""
    return ", or take tune=true" if dynamic.lr is None else ", or take tune=true in its place"


def _check_methods(trained: TrainedModel, config: Mapping[str, Any], reading: Reading) -> None:
    """Raise UserError, before anything is computed, if a model or the data lacks what a method
    needs."""
    dynamic = reading.methods.dynamic
    if reading.methods.cache:
        check_hidden(trained)
    if dynamic:
        learning(Pair(trained.model, trained.head))
    if reading.methods.mc_dropout:
        check_dropout(trained)
    for key, split in (
        ("tune", reading.tune),
        ("dynamic: rule=rms", "train" if dynamic and dynamic.rule == "rms" else None),
    ):
        if split and split not in (splits := make_source(config).splits):
            raise UserError(f"{key} needs the split {split}: the data has {', '.join(splits)}")


def _add_methods(
    run: Run,
    config: Mapping[str, Any],
    evaluation: Evaluation,
    text: TokenStore | Text,
    where: Mapping[str, str],
    reading: Reading,
    measured: dict[str, Any],
) -> None:
    """Add the rows of the methods on a text and, where they were tuned, on the text of that, as far
    as they come; measured: the figures of the text without them."""
    methods = reading.methods
    if reading.tune is None:
        measured["methods"] = evaluation.measure(text, methods)
        return
    split, tokenizer = reading.tune, evaluation.trained.tokenizer
    chosen_on = _split(run, config, tokenizer, split, evaluation.protocol)
    same, plain = where.get("split") == split, measured
    if not same:
        plain = measure(evaluation.trained, chosen_on, evaluation.protocol, reading.num_lanes)
    first = {"method": "plain", "settings": {}, **plain}
    measured["tuned"] = {"split": split, "methods": [first]}
    methods, rows = tuned(evaluation, chosen_on, methods)
    measured["tuned"]["methods"] += rows
    measured["methods"] = rows if same else evaluation.measure(text, methods)


def _check_same_vocabulary(
    run: Run, trained: TrainedModel, other: Run, beside: TrainedModel
) -> None:
    """Raise UserError if two runs have not the same tokens, whose probabilities could be mixed."""
    one, two = trained.tokenizer.hash(), beside.tokenizer.hash()
    if one != two:
        sizes = [each.tokenizer.vocabulary_size for each in (beside, trained)]
        raise UserError(
            f"ensemble: {other.name}/{other.id} has another vocabulary than {run.name}/{run.id}: "
            f"its tokenizer has {sizes[0]:,} tokens and the hash {two[:12]}, RUN's {sizes[1]:,} "
            f"and {one[:12]}; name runs that were trained with one tokenizer"
        )


def _text(
    run: Run, config: Mapping[str, Any], tokenizer: Tokenizer, reading: Reading, protocol: Protocol
) -> tuple[dict[str, str], TokenStore | Text]:
    """The text to evaluate on, and how the result names it."""
    split, file, text = reading.split, reading.file, reading.text
    if file is not None or text is not None:
        content = read_text(text, file)
        if split is not None:
            raise UserError(
                f"split={split} and {'file' if text is None else 'text'} are both given: "
                "leave one of them out"
            )
        named = {} if file is None else {"file": readable(str(Path(file).absolute()))}
        by_line = protocol == "sentence"
        return named or {"text": "given"}, Text.of(content, tokenizer, by_line)
    split = split or "test"
    return {"split": split}, _split(run, config, tokenizer, split, protocol)


def _split(
    run: Run, config: Mapping[str, Any], tokenizer: Tokenizer, split: str, protocol: Protocol
) -> TokenStore:
    """A split of the data; a warning if it was another text when the run was trained."""
    source = make_source(config)
    if split not in source.splits:
        raise UserError(f"split={split}: the data has {', '.join(source.splits)}")
    cache = run.path.parents[1] / ".cache"
    by_line = protocol == "sentence"
    store = prepare(source, tokenizer, cache, splits=[split], by_line=by_line).stores[split]
    splits = recorded(run).get("splits", {})
    then = splits.get(split, {}).get("sha256", store.sha256)
    own = run.config()["data"]
    # A hash may also differ only because one was encoded line by line and the other as a whole.
    lines = own.get("protocol") == "sentence" and not tokenizer.lines_alone
    if store.sha256 != then and config["data"] == own and store.by_line == lines:
        log.warning("%s has changed since %s was trained: its text is another one", split, run.id)
    return store


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
    _add_figures(table, measured, FIGURES)
    for label, rows in _methods_of(measured):
        table.add_section()
        for name, key, form in FIGURES:
            _add_figures(table, rows, ((f"{name}, {label}", key, form),))
    return table


FIGURES = (
    ("lanes", "num_lanes", ",d"),
    ("nll (nats per token)", "nll", ".5f"),
    ("perplexity", "perplexity", ",.2f"),
    ("bits per byte", "bits_per_byte", ".4f"),
    ("tokens per second", "tokens_per_second", ",.0f"),
)


def _add_figures(
    table: Table, rows: Sequence[Mapping[str, Any] | None], figures: Sequence[tuple[str, str, str]]
) -> None:
    """A line for each figure that is known; rows: a result for each column, None where there is
    none, as dynamic evaluation has diverged."""
    for label, key, form in figures:
        if all(each is None or each[key] is not None for each in rows):
            table.add_row(label, *("-" if each is None else f"{each[key]:{form}}" for each in rows))


def _methods_of(
    measured: Sequence[Mapping[str, Any]],
) -> Iterator[tuple[str, list[Mapping[str, Any] | None]]]:
    """Each method's label, and its rows under each protocol, first on the text of the tuning."""
    for found in (lambda each: each.get("tuned", {}), lambda each: each):
        columns = [found(each).get("methods", []) for each in measured]
        for rows in zip_longest(*columns):
            split, method = found(measured[0]).get("split"), next(filter(None, rows))["method"]
            yield f"{method}{f' on {split}' if split else ''}", list(rows)


def _settings_lines(result: Mapping[str, Any]) -> Iterator[str]:
    """A line for the settings of each method under each protocol."""
    for each in result["results"]:
        chosen = f", chosen on {each['tuned']['split']}" if "tuned" in each else ""
        for row in each.get("methods", []):
            given = {key: value for key, value in row["settings"].items() if value is not None}
            values = ", ".join(f"{key}={_shown(value)}" for key, value in given.items())
            yield f"{row['method']} under {each['protocol']}: {values}{chosen}"


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return f"[{','.join(map(_shown, value))}]"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
