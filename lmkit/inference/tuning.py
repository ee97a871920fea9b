"""Chooses the settings of a method on a text, which is never the one that is reported alone."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from lmkit.errors import UserError
from lmkit.inference.cache import Cache, mixed
from lmkit.inference.dynamic import DivergedError, Dynamic, Stretch
from lmkit.inference.ensemble import best_weights, mixture
from lmkit.inference.methods import Evaluation, Methods, Rows
from lmkit.inference.temperature import Temperature
from lmkit.inference.text import Text
from lmkit.store import TokenStore

THETAS = [0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0]
LARGEST_SHARE = 0.99  # of the cache: without the model a new word has no probability
# Of the default of each; the authors' program tries lr from 0.6 to 2 and decay from 0.5 to 2.5.
LR_FACTORS = [0.2, 0.5, 1.0, 2.0, 5.0]
DECAY_FACTORS = [0.0, 0.5, 1.0, 2.5]
SGD_DECAYS = [0.0, 1e-3, 1e-2]
INVERSES = [0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2]  # of temperatures
NOTHING_TO_CHOOSE = "tune: only cache, dynamic, ensemble and temperature have settings to choose"
TRIED_TOKENS = 30_000  # in which dynamic evaluation is tried, as by the authors' --gridfast


def check_choice(methods: Methods) -> None:
    """Raise UserError if the methods have no setting to choose, or all of these are set."""
    if methods.mc_dropout or not methods.names:
        raise UserError(NOTHING_TO_CHOOSE)
    if methods.temperature:
        return
    settings: dict[str, Any] = {}
    if cache := methods.cache:
        settings |= {"cache.theta": cache.theta, "cache.weight": cache.weight}
    if dynamic := methods.dynamic:
        settings |= {"dynamic.lr": dynamic.lr, "dynamic.decay": dynamic.decay}
    if ensemble := methods.ensemble:
        settings["ensemble_weights"] = ensemble.weights
    if None not in settings.values():
        raise UserError(f"tune: no effect with {', '.join(settings)} set; leave it out")


def tuned(
    evaluation: Evaluation, text: TokenStore | Text, methods: Methods
) -> tuple[Methods, list[dict[str, Any]]]:
    """The methods with the settings that are best on a text, and their rows on it.

    What is set stays. Of a cache theta is one of a grid, and weight the best there is; of dynamic
    evaluation lr, then decay, each of a grid over the first tokens; of an ensemble the weights; of
    the temperature, whatever it is, its inverse, near the best of a grid.
    """
    methods.check()
    check_choice(methods)
    if methods.ensemble:
        began = time.perf_counter()
        nlls = evaluation.nlls(text)
        ensemble = replace(methods.ensemble, weights=best_weights(nlls))
        assert ensemble.weights
        nll = mixture(nlls, ensemble.weights)
        row = evaluation.row("ensemble", ensemble, text, nll, began, evaluation.lanes(text))
        return Methods(ensemble=ensemble), [row]
    if methods.temperature:
        temperature = best_temperature(evaluation, text)
        row = evaluation.at_temperature(text, temperature)
        return Methods(temperature=temperature), [row]
    dynamic, cache = methods.dynamic, methods.cache
    if dynamic:
        dynamic = best_dynamic(evaluation, text, dynamic)
    began = time.perf_counter()
    size, thetas = (cache.size, THETAS) if cache else (0, [])
    if cache and cache.theta is not None:
        thetas = [cache.theta]
    rows: list[dict[str, Any]] = []
    if dynamic:
        values = evaluation.read_dynamically(text, dynamic, size, thetas)
        rows.append(evaluation.row("dynamic", dynamic, text, values[0], began))
    else:
        values = evaluation.read_with_cache(text, size, thetas)
    if cache:
        cache, nll = best_cache(values, size, thetas, cache.weight)
        name = "dynamic+cache" if dynamic else "cache"
        num_lanes = 1 if dynamic else evaluation.cache_lanes(text, cache.size)
        rows.append(evaluation.row(name, cache, text, nll, began, num_lanes))
    return Methods(cache=cache, dynamic=dynamic), rows


def best_cache(
    values: Rows, size: int, thetas: Sequence[float], weight: float | None = None
) -> tuple[Cache, np.ndarray[Any, np.dtype[np.float64]]]:
    """The theta and weight with the lowest nll, and that of each token, (tokens,).

    values: the nll and, for each theta, log p_cache, as `read_with_cache` returns them. weight:
    None if it is to be chosen.
    """
    nll, *log_probs = values
    tried = []
    for theta, log_prob in zip(thetas, log_probs, strict=True):
        share = _best_share(nll, log_prob) if weight is None else weight
        tried.append((Cache(size, theta, share), mixed(nll, log_prob, share)))
    return min(tried, key=lambda pair: float(pair[1].sum()))


def _best_share(nll: np.ndarray[Any, Any], log_prob: np.ndarray[Any, Any]) -> float:
    """The weight of a cache with the lowest nll; as `mixed` takes both."""
    there = ~np.isnan(log_prob)
    share = best_weights([nll[there], -log_prob[there]])[1] if there.any() else 0.0
    return min(share, LARGEST_SHARE)


def best_temperature(evaluation: Evaluation, text: TokenStore | Text) -> Temperature:
    """The temperature with the lowest nll, which is convex in the inverse: of that the lowest point
    of the parabola through the best of a grid and its neighbours."""
    nlls = evaluation.read_at_temperatures(text, [1 / inverse for inverse in INVERSES])
    sums = nlls.sum(axis=1, dtype=np.float64)
    at = int(sums.argmin())
    if 0 < at < len(INVERSES) - 1:
        near = slice(at - 1, at + 2)
        square, slope, _ = np.polyfit(INVERSES[near], sums[near], 2)
        return Temperature(float(-2 * square / slope))
    return Temperature(1 / INVERSES[at])


def best_dynamic(evaluation: Evaluation, text: TokenStore | Text, settings: Dynamic) -> Dynamic:
    """The settings with the best lr, then the best decay, unless they are set; raises DivergedError
    if the weights diverge with all of them."""
    few = Stretch(text, 0, min(TRIED_TOKENS, text.num_tokens))
    default = settings.complete()
    assert default.lr is not None
    assert default.decay is not None
    rates = [default.lr * factor for factor in LR_FACTORS]
    decays = [default.decay * factor for factor in DECAY_FACTORS]
    if settings.rule == "sgd":
        decays = SGD_DECAYS
    best = default
    if settings.lr is None:
        tried = {f"lr={lr:.3g}": replace(best, lr=lr) for lr in rates}
        best = _best(evaluation, few, tried, "set a lower lr")
    if settings.decay is None:
        tried = {f"decay={decay:.3g}": replace(best, decay=decay) for decay in decays}
        best = _best(evaluation, few, tried, f"lr={best.lr:.3g} is too high: lower it")
    return best


def _best(
    evaluation: Evaluation, text: Stretch, tried: Mapping[str, Dynamic], remedy: str
) -> Dynamic:
    """The settings with the lowest nll. tried: by what is shown of them. remedy: if all diverge."""
    nlls = [_nll(evaluation, text, settings, what) for what, settings in tried.items()]
    if np.isinf(nlls).all():
        raise DivergedError(
            f"dynamic: the weights diverged with all that was tried, {', '.join(tried)}: {remedy}"
        )
    return list(tried.values())[int(np.argmin(nlls))]


def _nll(evaluation: Evaluation, text: Stretch, settings: Dynamic, what: str) -> float:
    """The mean nll; infinite where the weights diverged."""
    try:
        nll = evaluation.read_dynamically(text, settings, what=what)[0]
    except DivergedError:
        return np.inf
    return float(nll.mean(dtype=np.float64))
