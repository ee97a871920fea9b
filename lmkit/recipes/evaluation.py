"""The numbers of a recipe's run: valid and test, in the paper's own protocol and by document."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from lmkit.assembly import make_source
from lmkit.inference import TrainedModel
from lmkit.inference.cache import Cache
from lmkit.inference.dynamic import DivergedError, Dynamic
from lmkit.inference.evaluation import measure
from lmkit.inference.methods import Evaluation, Methods
from lmkit.inference.tuning import tuned
from lmkit.run import Run
from lmkit.store import TokenStore, prepare
from lmkit.windows.lanes import Protocol

log = logging.getLogger(__name__)

SPLITS = ("valid", "test")
# The methods by the names that recipes have for their numbers in `further`: settings are chosen on
# valid, in the ranges of `lmkit evaluate tune=true`, and both splits are read with them.
METHODS = {
    "cache": Methods(cache=Cache(size=2000)),
    "dynamic_evaluation": Methods(dynamic=Dynamic()),
}


def measured(run: Run, config: Mapping[str, Any], *, further: bool = False) -> dict[str, Any]:
    """The results of `measure` for the best checkpoint of a run, each with its split; with
    `further` the recipe's numbers by other methods, by name, as far as there are these methods; the
    tokens and the hash of each split; and the precision.

    The number of threads is chosen anew, as `lmkit evaluate` does.
    """
    recipe = config["recipe"]
    trained = TrainedModel.load(run, {**config, "threads": None})
    own = trained.protocol
    results = []
    stores: dict[Protocol, Mapping[str, TokenStore]] = {}
    for protocol in dict.fromkeys((own, "document")):
        stores[protocol] = _stores(run, config, trained, protocol)
        for split, store in stores[protocol].items():
            is_test = protocol == own and split == "test"
            lanes = recipe.get("test_lanes") if is_test else None
            result = measure(trained, store, protocol, lanes, split)
            results.append({"split": split, **result})
    names = methods_of(config) if further else []
    train = partial(_stores, run, config, trained, own, ("train",))
    evaluation = Evaluation(trained, own, train=lambda: train()["train"])
    by_methods = {}
    for name in names:
        try:
            by_methods[name] = _tuned(evaluation, stores[own], METHODS[name], recipe)
        except DivergedError as error:  # the other numbers stand
            log.warning("no number of %s: %s", name, error)
    return {
        "results": results,
        "further": by_methods,
        "splits": {
            split: {"num_tokens": store.num_tokens, "sha256": store.sha256}
            for split, store in stores[own].items()
        },
        "precision": trained.precision,
    }


def methods_of(config: Mapping[str, Any]) -> list[str]:
    """The other methods by which a recipe has numbers that can be measured."""
    return [name for name in config["recipe"].get("further") or {} if name in METHODS]


def _tuned(
    evaluation: Evaluation,
    stores: Mapping[str, TokenStore],
    methods: Methods,
    recipe: Mapping[str, Any],
) -> dict[str, float]:
    """The number of a method on each split, with the settings that are best on valid."""
    chosen, rows = tuned(evaluation, stores["valid"], methods)
    found = {"valid": rows}
    if "test" in stores:
        found["test"] = evaluation.measure(stores["test"], chosen)
    metric = recipe.get("metric", "perplexity")
    return {split: in_metric(metric, rows[-1]) for split, rows in found.items()}


def _stores(
    run: Run,
    config: Mapping[str, Any],
    trained: TrainedModel,
    protocol: Protocol,
    wanted: Sequence[str] = SPLITS,
) -> Mapping[str, TokenStore]:
    source = make_source(config)
    splits = [split for split in wanted if split in source.splits]
    cache = run.path.parents[1] / ".cache"
    by_line = protocol == "sentence"
    return prepare(source, trained.tokenizer, cache, splits=splits, by_line=by_line).stores


def in_metric(metric: str, result: Mapping[str, Any]) -> float:
    """The number of one result: its perplexity, or the bits of a token."""
    if metric == "bits_per_character":
        return float(result["nll"]) / math.log(2)
    return float(result["perplexity"])
