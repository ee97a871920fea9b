"""`lmkit evaluate`: how well a trained model predicts a text, or does on a suite of tests."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from lmkit.commands import evaluate_text
from lmkit.errors import ResultError, UserError
from lmkit.inference.cache import Cache
from lmkit.inference.dynamic import Dynamic, Rule
from lmkit.inference.mc_dropout import MCDropout
from lmkit.inference.methods import methods_of
from lmkit.inference.milestones import ALL, draw_curve, milestones
from lmkit.ranges import Fraction, Positive, Size
from lmkit.run import Run, no_checkpoint
from lmkit.run.history import differences
from lmkit.suite import Reading, Source, compare
from lmkit.suite.blimp import Method
from lmkit.suite.reading import Format
from lmkit.suite.report import table as accuracy_table
from lmkit.suite.spelling import Punctuation
from lmkit.system.files import strict_json, write_atomically
from lmkit.system.paths import readable
from lmkit.system.redaction import redacted
from lmkit.system.wording import counted
from lmkit.windows.lanes import Protocol

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
    cache: Size | Cache | None = None,
    dynamic: Rule | Dynamic | None = None,
    mc_dropout: Size | MCDropout | None = None,
    ensemble: str | list[str] | None = None,
    ensemble_weights: list[Fraction] | None = None,
    temperature: Positive | None = None,
    tune: bool | str = False,
) -> dict[str, Any]:
    """Measure nll and perplexity on a text, or accuracy on a suite of tests.

        lmkit evaluate latest
        lmkit evaluate latest split=valid protocol=[document,stream]
        lmkit evaluate latest text="The cat sat on the mat."
        lmkit evaluate latest protocol=stream cache=2000 tune=true
        lmkit evaluate latest protocol=stream dynamic.rule=rms dynamic.segment=20
        lmkit evaluate latest suite=blimp path=blimp punctuation=apart
        lmkit evaluate latest suite=table path=pairs.csv group=construction others=[first,second]

    A text is a split, a file or a text, read under one protocol or several; what cache, dynamic,
    mc_dropout, ensemble and temperature make of it stands beside the plain figures. The sentences
    of a suite are each read from the zero state, in full precision unless trainer.precision= says
    otherwise; its files go into the run directory, under suites/.
    split: test unless given. file, text: read as one document, in the place of a split.
    protocol: the run's own unless given; [document,stream] puts two side by side.
    num_lanes: texts read at once; unless given, those of the run's validations
    (data.eval_batch_size) on its splits under its own protocol, so that the figures are the
    training's to the last digit; else 64. Only under stream does more than rounding depend on it,
    and there it is else 1.
    checkpoint: best, last or another of the run's; all: each that callbacks.milestones kept, or
    else each that there is, with a curve in the run directory, under curves/.
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
    cache: a continuous cache (Grave et al. 2017) of so many positions; also cache.size,
    cache.theta=0.3, cache.weight=0.1.
    dynamic: dynamic evaluation (Krause et al. 2018) by the rule rms or sgd; also dynamic.rule,
    dynamic.lr, dynamic.decay, dynamic.segment=5, dynamic.windows=500, dynamic.epsilon.
    mc_dropout: the mean over so many samples of dropout (Gal and Ghahramani 2016); also
    mc_dropout.samples, mc_dropout.seed.
    ensemble: more runs, named as RUN is, whose probabilities are averaged with RUN's.
    ensemble_weights: of RUN and of each of them; equal unless given or tuned.
    temperature: what the logits are divided by; with tune, any number has it chosen.
    tune: true chooses theta and weight of the cache, lr and decay of dynamic, the ensemble's
    weights or the temperature on valid, of which all but the temperature stay as they are set; or
    the name of another split, but not test.
    config: that of the run, of which data, kernels, threads, trainer.accelerator and
    trainer.precision are used
    """
    if checkpoint == ALL:
        settings = {key: value for key, value in locals().items() if key in KEYS}
        changed = _changed(run, config)
        return _over_all(run, settings, changed, partial(evaluate, run, config, **settings))
    texts_alone = {"split": split, "file": file, "text": text, "protocol": protocol}
    by_methods: dict[str, Any] = {"cache": cache, "dynamic": dynamic, "mc_dropout": mc_dropout}
    by_methods |= {"ensemble": ensemble, "ensemble_weights": ensemble_weights}
    by_methods |= {"temperature": temperature, "tune": tune}
    suites_alone: dict[str, Any] = {
        **{"path": path, "method": method, "good": good, "bad": bad, "group": group},
        **{"others": others, "end": end, "lower": lower},
        "punctuation": None if punctuation == "as_is" else punctuation,
    }
    if suite is not None:
        _refuse({**texts_alone, "num_lanes": num_lanes, **by_methods}, f"with suite={suite}")
        source = Source(suite, path, method, good, bad, group)
        reading = Reading(punctuation, lower, end)
        beside = [others] if isinstance(others, str) else others or []
        return _on_suite(run, beside, config, checkpoint, source, reading)
    _refuse(suites_alone, "without suite=")
    methods = methods_of(cache, dynamic, mc_dropout, ensemble, ensemble_weights, temperature)
    chosen_on = ("valid" if tune is True else tune) or None
    text_read = evaluate_text.Reading(split, file, text, protocol, num_lanes, methods, chosen_on)
    return evaluate_text.on_text(run, config, checkpoint, text_read)


# The keys that say what is evaluated, and how.
DEFAULTS: Mapping[str, Any] = evaluate.__kwdefaults__ or {}
KEYS = frozenset(DEFAULTS) - {"checkpoint"}
# Of the config.
USED = re.compile(r"(data\.|trainer\.(accelerator|precision)$|kernels$)")


def _changed(run: Run, config: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a config on which figures depend and that the run was trained with otherwise."""

    pairs = differences(run.config(), config)
    changed: dict[str, Any] = redacted({k: now for k, (_, now) in pairs.items() if USED.match(k)})
    return changed


def _over_all(
    run: Run,
    settings: Mapping[str, Any],
    changed: Mapping[str, Any],
    one: Callable[..., dict[str, Any]],
) -> dict[str, Any]:
    """The results of all checkpoints of a run; a curve over them goes into `curves/`. Where one is
    that of a ResultError, so are all together.

    settings: of the command. changed: keys of the config that are not the run's own. Another
    evaluation has another file.
    """
    run.check_links()
    settings = {key: _plain(key, value) for key, value in settings.items()}
    points = milestones(run)
    results, failed = [], []
    for point in points:
        try:
            results.append(one(checkpoint=point.name))
        except ResultError as error:
            results.append(error.result)
            failed.append(f"{point.name}: {error}")
    what, values = _curve(results)
    evaluated = {**settings, "config": changed} if changed else settings
    digest = hashlib.sha256(strict_json(evaluated).encode()).hexdigest()[:8]
    subject = settings["suite"] or settings["split"] or ("test" if _on_split(settings) else "text")
    path = run.path / "curves" / f"{subject}-{digest}.png"
    draw_curve(path, points, values, what)
    result = {
        "run": f"{run.name}/{run.id}",
        "settings": {key: value for key, value in settings.items() if value != DEFAULTS[key]},
        "config": changed,
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
    if failed:
        raise ResultError("\n".join(failed), result)
    return result


def _plain(key: str, value: Any) -> Any:
    """A setting as JSON has it; a file has one name from wherever the command is given."""
    if key in ("file", "path") and value is not None:
        return readable(str(Path(value).absolute()))
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else value


def _on_split(settings: Mapping[str, Any]) -> bool:
    return settings["file"] is None and settings["text"] is None


def _curve(results: Sequence[Mapping[str, Any]]) -> tuple[str, dict[str, list[float]]]:
    """What was measured, and its values: of a suite the accuracy of each run, of a text the
    perplexity under each protocol, not a number where it was not measured."""
    if "runs" in results[0]:
        names = [each["run"] for each in results[0]["runs"]]
        rows = [[100 * each["overall"]["accuracy"] for each in one["runs"]] for one in results]
        return "accuracy, %", dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))
    found = [dict(_perplexities(one)) for one in results]
    measured = dict.fromkeys(name for row in found for name in row)
    return "perplexity", {name: [row.get(name, math.nan) for row in found] for name in measured}


def _perplexities(result: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """The perplexity under each protocol, plain and by each method."""
    for each in result["results"]:
        yield each["protocol"], each["perplexity"]
        for row in each.get("methods", []):
            yield f"{each['protocol']}, {row['method']}", row["perplexity"]


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
    title = f"{result['suite']}: {counted(result['num_items'], 'item')} of {source.path}"
    console.print(title, highlight=False, markup=False, soft_wrap=True)
    console.print(table)
    print("\n".join(result["files"]))
    return result
