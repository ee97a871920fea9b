"""Checks, before a checkpoint is used, that it belongs to the run's config and text."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lmkit.errors import UserError
from lmkit.run import Run, history
from lmkit.run.checkpoints import newest_manifest, read_manifest
from lmkit.run.renamed import renamed
from lmkit.store import Prepared
from lmkit.system.files import strict_json
from lmkit.system.regular_file import DamagedError

log = logging.getLogger(__name__)

NOT_COMPARED = (
    ": values on it are not compared with those of before; the best checkpoint, early stopping and "
    "a schedule that follows validations begin anew"
)


def identity(config: Mapping[str, Any], prepared: Prepared) -> dict[str, Any]:
    """The identity in a checkpoint's manifest: the config, and the hashes of tokenizer and text."""
    return {
        "config": json.loads(strict_json(config)),
        "tokenizer": prepared.tokenizer.hash(),
        "store": prepared.hash,
        "splits": {split: store.sha256 for split, store in prepared.stores.items()},
    }


def check_own(run: Run, checkpoint: Path) -> None:
    """Raise UserError if a checkpoint's manifest is from another run."""
    if differs := list(_foreign(run, read_manifest(checkpoint))):
        raise UserError(
            f"checkpoint {checkpoint.resolve()} belongs to another run than {run.id}: "
            f"{'; '.join(differs)}; put the run's own checkpoint back, or take this one away"
        )


def _foreign(run: Run, manifest: Mapping[str, Any]) -> Iterator[str]:
    """The differences between the run that wrote a checkpoint and `run`."""
    config = manifest.get("config")
    if isinstance(config, Mapping):  # older ones have a hash that covers keys that may change too
        here = json.loads(strict_json(run.config()))
        record = json.loads(strict_json(run.read("overrides.yaml")))
        for key, then, now in history.refused(renamed(config), here, diverged=False):
            if then not in history.earlier(record, key):
                yield f"{key} is {then} there, {now} here"
    data = recorded(run)
    for what, then, now in _texts(manifest, data):
        if then != now:
            yield f"{what} has the hash {then[:12]} there, {now[:12]} here"


def _texts(manifest: Mapping[str, Any], data: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Names of the texts that both manifest and data.json know, with their two hashes."""
    if "tokenizer" in manifest and "tokenizer" in data:
        yield "the tokenizer", str(manifest["tokenizer"]), str(data["tokenizer"])
    splits = manifest.get("splits")
    if isinstance(splits, Mapping) and "splits" in data:
        train = data["splits"].get("train", {}).get("sha256")
        yield "the train text", str(splits.get("train")), str(train)
    elif "store" in manifest and "store" in data:
        yield "the text", str(manifest["store"]), str(data["store"])


def check_text(run: Run, prepared: Prepared) -> None:
    """Raise UserError if a run that resumes has another vocabulary or training text than it began
    with, or has lost a split."""
    tokenizer, then = _recorded(run)
    now = {name: store.sha256 for name, store in prepared.stores.items()}
    again = "or begin another run"
    if tokenizer not in (None, prepared.tokenizer.hash()):
        raise UserError(
            f"{run.id} cannot go on: it was trained with another vocabulary than the tokenizer has "
            f"now; put the tokenizer, and the text that it was made of, back as they were, {again}"
        )
    lost = [name for name in then if name not in now]
    if lost or ("train" in then and now["train"] != then["train"]):
        differs = "the train split differs"
        if lost:
            differs = f"it has no {' and no '.join(lost)} split any more"
        raise UserError(
            f"{run.id} cannot go on: it was trained on another text than the data has now "
            f"({differs}); put the text back as it was, {again}"
        )


def warn_of_text(run: Run, prepared: Prepared) -> None:
    """Warn if a run that resumes has other text to evaluate on than before."""
    _, then = _recorded(run)
    for name, store in prepared.stores.items() if then else ():
        if store.sha256 != then.get(name):
            what = "has another text than" if name in then else "was not there"
            more = NOT_COMPARED if name == "valid" else ""
            log.warning("%s goes on, but its %s split %s before%s", run.id, name, what, more)


def recorded(run: Run) -> dict[str, Any]:
    """The newest entry of data.json, empty if there is no file; raises DamagedError if the file is
    not one that a training has written."""
    data = run.read("data.json")
    try:
        data = history.latest(data)
        hashes = [data["tokenizer"], *(each["sha256"] for each in data["splits"].values())]
        sound = all(isinstance(each, str) for each in hashes)
    except (AttributeError, KeyError, TypeError):
        sound = not data
    if not sound:
        what = "is damaged: it has no hashes of a tokenizer and of splits"
        raise DamagedError(run.path / "data.json", what)
    return data


def _recorded(run: Run) -> tuple[str | None, dict[str, str]]:
    """The hashes of the tokenizer and of each split that a run has had so far."""
    data = recorded(run)
    if not data:  # lost, or never written
        _, manifest = newest_manifest(run.path / "checkpoints")
        return manifest.get("tokenizer"), manifest.get("splits", {})
    return data["tokenizer"], {name: each["sha256"] for name, each in data["splits"].items()}
