"""Evaluation by the methods of the literature, whose figures stand beside the plain one."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from lmkit.errors import UserError
from lmkit.inference.cache import Cache, mixed, read_with_cache
from lmkit.inference.dynamic import Dynamic, Rule, Weights, read_dynamically, root_mean_squares
from lmkit.inference.ensemble import Ensemble, mixture
from lmkit.inference.evaluation import figures, layout
from lmkit.inference.mc_dropout import MCDropout, check_dropout, mean_nll
from lmkit.inference.temperature import Temperature, read_at_temperatures
from lmkit.inference.text import Text
from lmkit.inference.trained import TrainedModel
from lmkit.store import TokenStore
from lmkit.windows import Tokens
from lmkit.windows.lanes import Protocol

REMEMBERED = 2**26  # numbers of hidden vectors in the caches of all lanes: 256 MiB
BPTT = 35  # positions of a window with masks of its own, where the training's is not known

T = TypeVar("T")
Rows = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Methods:
    """The settings of each method that is asked for, None for the others."""

    cache: Cache | None = None
    dynamic: Dynamic | None = None
    mc_dropout: MCDropout | None = None
    ensemble: Ensemble | None = None
    temperature: Temperature | None = None

    @property
    def names(self) -> list[str]:
        """Those that are asked for."""
        return [name for name, settings in vars(self).items() if settings is not None]

    def check(self) -> None:
        """Raise UserError for methods that do not go together, and for weights of no ensemble."""
        one_by_one = ("mc_dropout", "ensemble", "temperature")
        alone = [name for name in one_by_one if getattr(self, name)]
        if alone and len(self.names) > 1:
            others = ", ".join(name for name in self.names if name != alone[0])
            raise UserError(
                f"{alone[0]} with {others}: only cache and dynamic go together; "
                "evaluate with each of the others by itself"
            )
        for settings in (self.dynamic, self.ensemble):
            if settings:
                settings.check()


def methods_of(
    cache: int | Cache | Mapping[str, Any] | None = None,
    dynamic: Rule | Dynamic | Mapping[str, Any] | None = None,
    mc_dropout: int | MCDropout | Mapping[str, Any] | None = None,
    ensemble: str | Sequence[str] | None = None,
    ensemble_weights: Sequence[float] | None = None,
    temperature: float | Temperature | Mapping[str, Any] | None = None,
) -> Methods:
    """The methods that a command line names, each by its settings or by the first of them alone."""
    if ensemble_weights is not None and ensemble is None:
        raise UserError("ensemble_weights: no effect without ensemble=; leave it out")
    runs = [ensemble] if isinstance(ensemble, str) else ensemble
    return Methods(
        _settings(Cache, "size", cache),
        _settings(Dynamic, "rule", dynamic),
        _settings(MCDropout, "samples", mc_dropout),
        None
        if runs is None
        else Ensemble(list(runs), None if ensemble_weights is None else list(ensemble_weights)),
        _settings(Temperature, "value", temperature),
    )


def _settings(kind: Callable[..., T], first: str, given: Any) -> T | None:
    if given is None or isinstance(given, Cache | Dynamic | MCDropout | Temperature):
        return given  # type: ignore[return-value]
    return kind(**(given if isinstance(given, Mapping) else {first: given}))


class Evaluation:
    """What a trained model needs to be evaluated by some methods under one protocol.

    others: the other models of an ensemble. train: the training text, which is asked for only where
    a method reads it. num_lanes: None as for the plain figure; dynamic evaluation has one.
    """

    def __init__(
        self,
        trained: TrainedModel,
        protocol: Protocol,
        *,
        num_lanes: int | None = None,
        others: Sequence[TrainedModel] = (),
        train: Callable[[], TokenStore | Text] | None = None,
    ) -> None:
        self.trained = trained
        self.protocol = protocol
        self.num_lanes = num_lanes
        self.others = others
        self._train = train
        self._rms: tuple[Dynamic, Weights] | None = None

    def measure(self, text: TokenStore | Text, methods: Methods) -> list[dict[str, Any]]:
        """A row for each method: its settings, nll, perplexity, bits per byte, and the tokens per
        second of all that it computes. With dynamic evaluation a cache is one of adapted hidden
        vectors, `dynamic+cache`."""
        methods.check()
        rows = []
        if methods.dynamic:
            rows += self._adapted(text, methods.dynamic, methods.cache)
        elif methods.cache:
            rows += self._cached(text, methods.cache)
        if methods.mc_dropout:
            rows += self._sampled(text, methods.mc_dropout)
        if methods.ensemble:
            rows += self._together(text, methods.ensemble)
        if methods.temperature:
            rows.append(self.at_temperature(text, methods.temperature))
        return rows

    def lanes(self, text: TokenStore | Text) -> int:
        """The lanes in which the plain figure of a text is read."""
        num_lanes, _ = layout(self.trained, text, self.protocol, self.num_lanes)
        return num_lanes

    def read_with_cache(self, text: TokenStore | Text, size: int, thetas: list[float]) -> Rows:
        """As `cache.read_with_cache`, in as many lanes as memory allows."""
        num_lanes = self.cache_lanes(text, size)
        return read_with_cache(self.trained, text, self.protocol, num_lanes, size, thetas)

    def cache_lanes(self, text: TokenStore | Text, size: int) -> int:
        """The lanes in which a text is read with a cache of this size."""
        num_lanes = self.lanes(text)
        if self.protocol != "stream" and self.num_lanes is None:  # only rounding depends on it
            most = REMEMBERED // (min(size, text.num_tokens) * self.trained.model.hidden_size)
            num_lanes = min(num_lanes, max(most, 1))
        return num_lanes

    def read_dynamically(
        self,
        text: Tokens,
        settings: Dynamic,
        size: int = 0,
        thetas: list[float] | None = None,
        what: str = "dynamic",
    ) -> Rows:
        """As `dynamic.read_dynamically`; the training text is read once for all calls with one
        length of segments."""
        return read_dynamically(
            self.trained,
            text,
            self.protocol,
            settings,
            self._root_mean_squares(settings),
            cache_size=size,
            thetas=thetas,
            what=what,
        )

    def nlls(self, text: TokenStore | Text) -> list[npt.NDArray[np.float32]]:
        """The nll of each token by each model of an ensemble, in nats."""
        rows = []
        for number, each in enumerate((self.trained, *self.others), start=1):
            num_lanes, _ = layout(each, text, self.protocol, self.num_lanes)
            what = f"model {number} of {1 + len(self.others)}"
            rows.append(read_with_cache(each, text, self.protocol, num_lanes, what=what)[0])
        return rows

    def read_at_temperatures(self, text: TokenStore | Text, values: Sequence[float]) -> Rows:
        """As `temperature.read_at_temperatures`, in the lanes of the plain figure."""
        num_lanes = self.lanes(text)
        return read_at_temperatures(self.trained, text, self.protocol, num_lanes, values)

    def at_temperature(self, text: TokenStore | Text, settings: Temperature) -> dict[str, Any]:
        """The row of a temperature."""
        began = time.perf_counter()
        nll = self.read_at_temperatures(text, [settings.value])[0]
        return self.row("temperature", settings, text, nll, began, self.lanes(text))

    def _root_mean_squares(self, settings: Dynamic) -> Weights:
        if settings.rule == "sgd":
            return {}
        like = replace(settings, lr=None, decay=None)
        if self._rms is None or self._rms[0] != like:
            if self._train is None:
                raise UserError("dynamic: rule=rms needs the training text; give it, or rule=sgd")
            rms = root_mean_squares(self.trained, self._train(), self.protocol, settings)
            self._rms = (like, rms)
        return self._rms[1]

    def _cached(self, text: TokenStore | Text, cache: Cache) -> list[dict[str, Any]]:
        began = time.perf_counter()
        theta, weight = cache.theta_and_weight()
        nll, log_prob = self.read_with_cache(text, cache.size, [theta])
        both, num_lanes = mixed(nll, log_prob, weight), self.cache_lanes(text, cache.size)
        return [self.row("cache", cache.complete(), text, both, began, num_lanes)]

    def _adapted(
        self, text: TokenStore | Text, dynamic: Dynamic, cache: Cache | None
    ) -> list[dict[str, Any]]:
        self._root_mean_squares(dynamic)
        began = time.perf_counter()
        size, thetas = (cache.size, [cache.theta_and_weight()[0]]) if cache else (0, [])
        nll, *log_prob = self.read_dynamically(text, dynamic, size, thetas)
        rows = [self.row("dynamic", dynamic.complete(), text, nll, began)]
        if cache:
            both = mixed(nll, log_prob[0], cache.theta_and_weight()[1])
            rows.append(self.row("dynamic+cache", cache.complete(), text, both, began))
        return rows

    def _sampled(self, text: TokenStore | Text, settings: MCDropout) -> list[dict[str, Any]]:
        check_dropout(self.trained)
        began = time.perf_counter()
        num_lanes = self.lanes(text)
        bptt = self.trained.shape[1] if self.trained.shape else BPTT
        nll = mean_nll(self.trained, text, self.protocol, num_lanes, bptt, settings)
        return [self.row("mc_dropout", settings, text, nll, began, num_lanes)]

    def _together(self, text: TokenStore | Text, settings: Ensemble) -> list[dict[str, Any]]:
        began = time.perf_counter()
        nlls = self.nlls(text)
        weights = settings.weights or [1 / len(nlls)] * len(nlls)
        settings = replace(settings, weights=weights)
        nll, num_lanes = mixture(nlls, weights), self.lanes(text)
        return [self.row("ensemble", settings, text, nll, began, num_lanes)]

    def row(
        self,
        method: str,
        settings: Any,
        text: TokenStore | Text,
        nll: npt.NDArray[np.floating],
        began: float,
        num_lanes: int = 1,
    ) -> dict[str, Any]:
        """A method's figures. nll: of each token. began: when it did, by `time.perf_counter`.
        num_lanes: in which the text was read, RUN's of an ensemble."""
        assert len(nll) == text.num_tokens
        return {
            "method": method,
            "settings": asdict(settings),
            "num_lanes": num_lanes,
            **figures(self.trained, text, float(nll.sum(dtype=np.float64))),
            "tokens_per_second": text.num_tokens / (time.perf_counter() - began),
        }
