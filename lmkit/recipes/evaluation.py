"""The numbers of a recipe's run: valid and test, in the paper's own protocol and by document."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from lmkit.assembly import make_source
from lmkit.inference import TrainedModel
from lmkit.inference.evaluation import measure
from lmkit.run import Run
from lmkit.store import TokenStore, prepare
from lmkit.windows.lanes import Protocol

SPLITS = ("valid", "test")
# Numbers that an evaluation of another kind gives, such as a cache, by the name that recipes have
# for them in `further`: a function of the model and of the stores of valid and test, which returns
# the number of each in the recipe's metric. A name without a function is shown as not measured.
FURTHER: dict[str, Callable[[TrainedModel, Mapping[str, TokenStore]], Mapping[str, float]]] = {}


def measured(run: Run, config: Mapping[str, Any]) -> dict[str, Any]:
    """The results of `measure` for the best checkpoint of a run, each with its split; the further
    numbers that can be measured, by name; and the precision.

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
            results.append({"split": split, **measure(trained, store, protocol, lanes)})
    further = {
        name: dict(FURTHER[name](trained, stores[own]))
        for name in recipe.get("further") or {}
        if name in FURTHER
    }
    return {"results": results, "further": further, "precision": trained.precision}


def _stores(
    run: Run, config: Mapping[str, Any], trained: TrainedModel, protocol: Protocol
) -> Mapping[str, TokenStore]:
    source = make_source(config)
    splits = [split for split in SPLITS if split in source.splits]
    cache = run.path.parents[1] / ".cache"
    by_line = protocol == "sentence"
    return prepare(source, trained.tokenizer, cache, splits=splits, by_line=by_line).stores


def in_metric(metric: str, result: Mapping[str, Any]) -> float:
    """The number of one result: its perplexity, or the bits of a token."""
    if metric == "bits_per_character":
        return float(result["nll"]) / math.log(2)
    return float(result["perplexity"])
