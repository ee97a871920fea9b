"""Checks and preparations before the first trial of a sweep."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from lmkit.assembly import make_data
from lmkit.config.check import check
from lmkit.config.compose import compose
from lmkit.config.mistakes import reported
from lmkit.errors import UserError
from lmkit.run import Directory
from lmkit.sweep.driver import Metric
from lmkit.sweep.report import Shown, identity
from lmkit.sweep.search import Search
from lmkit.system import hardware


def gpu_slots(config: Mapping[str, Any], parallel: int) -> list[dict[str, str]]:
    """Environment variables for each of the parallel trials, which give it GPUs of its own."""
    if parallel == 1 or config["trainer"]["accelerator"] != "cuda":
        return [{}] * parallel
    each = hardware.num_processes(config["trainer"])
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(
        map(str, range(torch.cuda.device_count()))
    )
    gpus = visible.split(",")
    if parallel * each > len(gpus):
        raise UserError(
            f"parallel={parallel} trials of trainer.devices={each} need {parallel * each} GPUs, "
            f"here are {len(gpus)}; lower either"
        )
    shares = [gpus[slot * each : (slot + 1) * each] for slot in range(parallel)]
    return [{"CUDA_VISIBLE_DEVICES": ",".join(share)} for share in shares]


def prepare_data(config: dict[str, Any], metric: Metric) -> None:
    """Make the stores once, rather than in each of the first trials; raises UserError if no trial
    would log the metric."""
    data = make_data(config)
    store, tokenizer = data.prepare().stores.get("valid"), data.tokenizer
    if metric == "val/bits_per_byte" and not (tokenizer.lossless and store and store.num_bytes):
        raise UserError(
            f"metric={metric}: never logged, as the tokenizer ({tokenizer.name}) does not keep "
            "every text as it is; set metric=val/nll, or take another tokenizer"
        )


def impossible(
    search: Search,
    config: Mapping[str, Any],
    metric: Metric,
    total: int,
    points: Sequence[Mapping[str, str]],
) -> Iterator[str]:
    """Mistakes in the sweep as a whole, which would show in no single trial."""
    if points and total > len(points):
        combinations = "combination" if len(points) == 1 else "combinations"
        yield f"num_trials={total}: the grid has {len(points)} {combinations}"
    if config["trainer"].get("limit_val_batches") == 0 or config["trainer"].get("fast_dev_run"):
        yield "trials are compared by their validation: without one there is no sweep"
    tokenizers = [d.source for d in search.dimensions if d.key.partition(".")[0] == "tokenizer"]
    if tokenizers and metric == "val/nll":
        yield (
            f"{tokenizers[0]}: nats per token of different tokens cannot be compared; "
            "set metric=val/bits_per_byte"
        )


def read_values(search: Search, config: Mapping[str, Any]) -> tuple[Shown, list[str]]:
    """For each key, the value in the config for every listed value; and the mistakes of values that
    the config rejects."""
    mistakes: list[str] = []
    shown: dict[str, dict[str, Any]] = {}
    for index, dimension in enumerate(search.dimensions):
        firsts = [each.examples()[0] for each in search.dimensions]
        first, *others = dimension.examples()
        shown[dimension.key] = {str(first): value_at(config, dimension.key, first)}
        for value in others:  # the combination of all first values has been checked already
            firsts[index] = value
            try:
                checked, _ = check(compose(search.arguments(firsts)))
                shown[dimension.key][str(value)] = value_at(checked, dimension.key, value)
            except UserError as error:
                mistakes += reported(error)
    return shown, mistakes


def value_at(config: Mapping[str, Any], key: str, written: object) -> Any:
    """The value of a config at a key; for a group, the option that was `written`."""
    value: Any = config
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    is_group = isinstance(value, Mapping) or (value is None and written != "null")
    return written if is_group else value


def check_same(directory: Directory, settings: dict[str, Any]) -> None:
    """Write the settings of a sweep; raises UserError if it resumes with other settings."""
    then = directory.read("sweep.yaml")
    if not then and (directory.path / "study.db").exists():
        raise UserError(
            f"{directory.path} has lost its sweep.yaml, which says what its trials are: put a copy "
            "of it back, or choose another run_id"
        )
    changes = [
        f"\n  {key}: {then.get(key)} there, {settings[key]} now"
        for key in settings
        if then and then.get(key) != settings[key]
    ]
    if changes:
        raise UserError(
            f"run_id={identity(directory)} is another sweep ({directory.path}):"
            f"{''.join(changes)}\nonly num_trials and parallel may change; choose another run_id"
        )
    directory.write("sweep.yaml", settings)
