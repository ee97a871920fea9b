"""The memory probe: measures how far models of the same size remember."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from lmkit.assembly import build_model
from lmkit.config.mistakes import report
from lmkit.config.signatures import signature_keys
from lmkit.config.targets import public_name, resolve_target
from lmkit.corpus import MemoryProbe
from lmkit.corpus.memory_probe import NUM_NEEDED, needed_words, probe_distance
from lmkit.errors import UserError
from lmkit.inference import TrainedModel
from lmkit.model import GRU, LSTM, Elman, LanguageModel, Window
from lmkit.store import TokenStore
from lmkit.tokenizer import Word

NUM_LANES = 64


def check_config(config: Mapping[str, Any], context: int) -> None:
    """Raise UserError with all mistakes that make a config unfit for the probe."""
    mistakes = [
        f"{group}._target_={config[group]['_target_']}: the probe needs {group}={option}"
        for group, option, wanted in (
            ("data", "memory_probe", MemoryProbe),
            ("tokenizer", "word", Word),
            ("model", "lstm", LSTM),
        )
        if not issubclass(resolve_target(config[group]["_target_"]), wanted)
    ]
    if config["model"].get("tie_weights"):
        mistakes.append(
            "model.tie_weights=true: the models are made of one size by their hidden_size, which "
            "tied weights fix; set model.tie_weights=false"
        )
    if context < 1:
        mistakes.append(f"context={context}: must be at least 1")
    if mistakes:
        raise UserError(report(mistakes))


def same_size(
    config: Mapping[str, Any], context: int, vocabulary_size: int
) -> dict[str, dict[str, Any]]:
    """Configs of a window, an Elman network and a GRU with as many parameters as the LSTM's config,
    and that config.

    Settings that a model has in common are kept; its hidden_size is the largest with which it has
    no more parameters than the LSTM.
    """
    most = num_parameters(config, vocabulary_size)

    def sized(kind: type[LanguageModel], **own: Any) -> dict[str, Any]:
        keys = signature_keys(kind)
        shared = {key: value for key, value in config["model"].items() if key in keys}
        node = {"_target_": public_name(kind), **shared, **own}

        def wide(hidden_size: int) -> dict[str, Any]:
            return {**config, "model": {**node, "hidden_size": hidden_size}}

        sizes = range(1, most)
        fits = bisect_right(sizes, most, key=lambda n: num_parameters(wide(n), vocabulary_size))
        return wide(max(fits, 1))

    others = {"window": sized(Window, context=context), "elman": sized(Elman), "gru": sized(GRU)}
    return {**others, "lstm": dict(config)}


def num_parameters(config: Mapping[str, Any], vocabulary_size: int) -> int:
    """The number of parameters of model and head, counted without allocating them."""
    with torch.device("meta"):
        modules = build_model(config, vocabulary_size)
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


def predictions(trained: TrainedModel, store: TokenStore) -> npt.NDArray[np.int64]:
    """For each token of the store, the token that the model predicts as likeliest there."""
    loader = trained.loader(store, trained.protocol, min(NUM_LANES, store.num_documents))
    tokens = loader.lanes(0).tokens
    predicted = np.empty(store.num_tokens, np.int64)
    for window, output in trained.read(loader):
        with trained.computing():
            chunks = [log_prob.argmax(1) for log_prob in trained.head.log_prob(output.hidden)]
        rows, time = window.tokens.shape
        begin = window.index * loader.bptt
        mask = window.mask.cpu().numpy()
        likeliest = torch.cat(chunks).view(rows, time).cpu().numpy()
        predicted[tokens[:rows, begin : begin + time][mask]] = likeliest[mask]
    return predicted


def num_correct(predicted: npt.ArrayLike, store: TokenStore) -> dict[int, tuple[int, int]]:
    """By ascending distance: the number of needed words predicted right, and of all needed words.

    predicted: (num_tokens,), one token for each of the store's.
    """
    right = np.asarray(predicted) == store.tokens
    counts: dict[int, tuple[int, int]] = {}
    start = 0
    for index, end in enumerate(store.document_ends.tolist()):
        name = store.document_id(index)
        correct, total = counts.get(distance := probe_distance(name), (0, 0))
        num_right = sum(bool(right[start + word]) for word in needed_words(name))
        counts[distance] = correct + num_right, total + NUM_NEEDED
        start = end
    return dict(sorted(counts.items()))


def chance(num_countries: int) -> float:
    """Accuracy of the best guess without memory, given that the two needed words always differ."""
    return (1 / num_countries + 1 / (num_countries - 1)) / 2
