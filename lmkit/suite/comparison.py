"""Evaluates runs on a suite; numbers, items and a picture go into the first one's directory."""

from __future__ import annotations

import hashlib
import logging
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from lmkit.errors import cannot_write
from lmkit.inference import TrainedModel
from lmkit.inference.beside import find_beside, load_beside
from lmkit.run import Run
from lmkit.run.checkpoints import read_manifest
from lmkit.suite.accuracy import references
from lmkit.suite.evaluation import Reading, evaluate_suite
from lmkit.suite.items import Suite
from lmkit.suite.picture import draw
from lmkit.suite.reading import Source
from lmkit.system.files import figure_bytes, strict_json, write_directory
from lmkit.system.paths import listed

log = logging.getLogger(__name__)


class Loaded(NamedTuple):
    """A run's model, and what results call it."""

    trained: TrainedModel
    named: dict[str, Any]


def compare(
    run: Run,
    others: Sequence[str],
    config: Mapping[str, Any],
    checkpoint: str,
    source: Source,
    reading: Reading,
) -> dict[str, Any]:
    """The result of a suite for a run and the others, which are named as RUN is.

    config: of the run; how the others compute is as it says. Everything that may be wrong is looked
    at before anything is computed.
    """
    suite = source.read()
    runs = [run, *find_beside(run, others, "others")]
    loaded = [_load(each, run, config, checkpoint) for each in runs]
    _check_writable(run)
    if suite.skipped:
        log.info(
            "method=%s: %d paradigms do not have it and are left out: %s",
            *(source.method, len(suite.skipped), listed(suite.skipped)),
        )
    results: list[dict[str, Any]] = []
    rows: list[str] = []
    for each in loaded:
        name = each.named["run"]
        found, items = evaluate_suite(each.trained, suite, reading, name)
        results.append({**each.named, **found})
        rows += items
    result = {
        "suite": suite.name,
        "path": source.path,
        "sha256": _hash(suite),
        **reading._asdict(),
        "num_items": len(suite.items),
        "is_pairs": suite.is_pairs,
        "skipped": list(suite.skipped),
        "levels": suite.levels,
        "runs": results,
        "references": references(suite),
    }
    directory = run.path / "suites" / _directory_name(result)
    names = ("accuracy.json", "items.jsonl", "accuracy.png")
    result["files"] = [str(directory / name) for name in names]
    contents = (
        strict_json(result, indent=2).encode(),
        "".join(f"{row}\n" for row in rows).encode(),
        figure_bytes(draw(result)),
    )
    write_directory(directory, dict(zip(names, contents, strict=True)))
    return result


def _check_writable(run: Run) -> None:
    """Raise UserError if the run's directory cannot be written, before time is spent."""
    run.check_links()
    try:
        with tempfile.TemporaryFile(dir=run.path):  # os.access is wrong for root in /proc
            pass
    except OSError as error:
        what = f"cannot write the results into {run.path}"
        raise cannot_write(what, run.path, error, "make it writable") from None


def _load(run: Run, first: Run, config: Mapping[str, Any], checkpoint: str) -> Loaded:
    """A run's model, which computes as `config`, that of the first run, says."""
    trained = load_beside(run, first, config, checkpoint, "others")
    path = trained.checkpoint
    named = {
        "run": f"{run.name}/{run.id}",
        "checkpoint": path.stem if path else None,
        "step": read_manifest(path).get("step") if path else None,
        "precision": trained.precision,
    }
    return Loaded(trained, named)


def _hash(suite: Suite) -> str:
    """The hash of what is tested, whatever files it came from."""
    digest = hashlib.sha256()
    for item in suite.items:
        formulas = [formula.text for formula in item.formulas]
        digest.update(repr((item.id, item.group, item.sentences, formulas)).encode())
    return digest.hexdigest()


def _directory_name(result: Mapping[str, Any]) -> str:
    """A name that says suite, reading and checkpoint, and differs wherever the result may."""
    first = result["runs"][0]
    named = [
        [each[key] for key in ("run", "checkpoint", "step", "precision")] for each in result["runs"]
    ]
    settings = [result[key] for key in ("sha256", "punctuation", "lower", "end")]
    digest = hashlib.sha256(strict_json([*settings, named]).encode()).hexdigest()
    words = [
        result["suite"],
        "apart" if result["punctuation"] == "apart" else None,
        "lower" if result["lower"] else None,
        "end" if result["end"] else None,
        first["checkpoint"],
        None if first["step"] is None else f"step-{first['step']}",
        first["precision"],
        digest[:8],
    ]
    return "-".join(filter(None, words))
