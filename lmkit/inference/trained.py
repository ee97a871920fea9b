"""A trained model loaded from a run, ready to evaluate, score and generate."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lmkit import kernels
from lmkit.assembly import build_model
from lmkit.errors import UserError
from lmkit.head import Head
from lmkit.inference import table
from lmkit.inference.identity import check_own
from lmkit.inference.sampling import Sampling, sample_texts
from lmkit.inference.scoring import TokenScore, measures
from lmkit.inference.table import FirstWord, Joint
from lmkit.inference.text import Text
from lmkit.inference.weights import find_checkpoint, load_weights
from lmkit.kernels import Kernels
from lmkit.metrics import TokenNLL, perplexity
from lmkit.model import LanguageModel, Output, Reader
from lmkit.run import Run
from lmkit.run.checkpoints import RAW
from lmkit.system import hardware, threads
from lmkit.system.threads import Threads
from lmkit.tokenizer import Tokenizer, load_tokenizer
from lmkit.tokenizer.boundaries import word_starts
from lmkit.windows import DataModule, Tokens, Window, WindowLoader
from lmkit.windows.lanes import Protocol

log = logging.getLogger(__name__)

# Positions of a window over all its lanes, in evaluation and in scoring token by token.
POSITIONS = 4096
SCORED_POSITIONS = 256


def any_threads(model: LanguageModel, head: Head, device: str, precision: str) -> bool:
    """Whether model and head compute, on the kernels in use, bit for bit the same with any number
    of threads."""
    dtype = torch.float32 if precision == "32-true" else torch.bfloat16
    compiled = kernels.compiled(torch.device(device), dtype)
    return compiled and model.any_threads and head.any_threads


class TrainedModel:
    """Model, head and tokenizer in evaluation mode on one device.

    `protocol`: the training's, which says where the model expects a reset. `threads`: the number
    for all computations; None leaves PyTorch's number as it is. `shape`: lanes and positions of the
    windows in which the training evaluates.
    """

    def __init__(
        self,
        model: LanguageModel,
        head: Head,
        tokenizer: Tokenizer,
        *,
        protocol: Protocol = "document",
        device: str = "cpu",
        precision: str = "32-true",
        kernels: Kernels = "auto",
        threads: int | None = None,
        shape: tuple[int, int] | None = None,
        checkpoint: Path | None = None,
    ) -> None:
        self.model = model.to(device).eval()
        self.head = head.to(device).eval()
        self.tokenizer = tokenizer
        self.protocol = protocol
        self.device = device
        self.precision = precision
        self.kernels = kernels
        self.threads = threads
        self.shape = shape
        self.checkpoint = checkpoint
        self._pace: Threads | None = None  # only within `measured`, which chooses a number

    @classmethod
    def load(cls, run: Run, config: Mapping[str, Any], checkpoint: str = "best") -> Self:
        """The model of a run; checkpoint: `best`, `last` or another name in `checkpoints/`; with
        `:raw` after it, the weights themselves where the run has averaged them.

        Raises UserError if the checkpoint is missing or damaged, or if it was trained with another
        tokenizer or config.
        """
        trained_with = run.config()
        for group in ("tokenizer", "model"):
            if config[group] != trained_with[group]:
                raise UserError(
                    f"{group} cannot be changed: {run.id} was trained with "
                    f"{trained_with[group]}, found {config[group]}; leave {group} out"
                )
        path = find_checkpoint(run, checkpoint)
        check_own(run, path)
        tokenizer = load_tokenizer(run.path)
        with torch.random.fork_rng(devices=[]):  # the initial weights are replaced
            model, head = build_model(config, tokenizer.vocabulary_size)
        load_weights(path, model, head, tokenizer, raw=checkpoint.endswith(RAW))
        device, precision = _device(config["trainer"])
        return cls(
            model,
            head,
            tokenizer,
            protocol=config["data"].get("protocol", "document"),
            device=device,
            precision=precision,
            kernels=config.get("kernels", "auto"),
            threads=config.get("threads"),
            shape=DataModule.evaluation_shape(config["data"]),
            checkpoint=path,
        )

    @contextlib.contextmanager
    def computing(self, gradients: bool = False) -> Iterator[None]:
        """The context in which model and head run: precision, kernels, threads, and no gradients
        unless asked for."""
        dtype = torch.float16 if self.precision == "16-mixed" else torch.bfloat16
        mixed = self.precision != "32-true"
        number = self._pace.number if self._pace else self.threads
        with (
            kernels.use(self.kernels),
            threads.use(number),
            torch.enable_grad() if gradients else torch.inference_mode(),
            torch.autocast(self.device, dtype, enabled=mixed),
        ):
            yield

    def loader(
        self,
        text: Tokens,
        protocol: Protocol,
        num_lanes: int = 1,
        positions: int = POSITIONS,
    ) -> WindowLoader:
        """Windows of a text with about so many positions; in one lane tokens keep their order."""
        return WindowLoader(
            text,
            eos_id=self.tokenizer.eos_id,
            protocol=protocol,
            num_lanes=num_lanes,
            bptt=max(1, positions // num_lanes),
            seed=None,
        )

    def windows(self, loader: WindowLoader) -> Iterator[Window]:
        """Each window, on the device."""
        for window in loader:
            yield window._replace(
                tokens=window.tokens.to(self.device),
                targets=window.targets.to(self.device),
                resets=window.resets.to(self.device),
                mask=window.mask.to(self.device),
            )

    def read(self, loader: WindowLoader) -> Iterator[tuple[Window, Output]]:
        """Each window, on the device, with the model's output."""
        reader = Reader(self.model)
        for window in self.windows(loader):
            with self.computing():
                output = reader.read(window.tokens, window.resets)
            yield window, output

    def nll_sums(self, loader: WindowLoader) -> Iterator[tuple[float, int]]:
        """After each window: the sum of nll in nats and the number of tokens so far."""
        # On the same device as in training, which sums in that device's order.
        metric = TokenNLL(torch.float32 if self.device == "mps" else torch.float64)
        metric.to(self.device)
        for window, nll in self.measured(loader, self._nll):
            metric.update(nll, window.mask)
            yield metric.compute()

    def measured(
        self, loader: WindowLoader, measure: Callable[[Window, Output], Tensor]
    ) -> Iterator[tuple[Window, Tensor]]:
        """Each window, on the device, with what is measured of the model's output for it."""
        self._pace = self._chosen_threads()
        try:
            began = time.perf_counter()  # leaves out what the caller does between two windows
            for window, output in self.read(loader):
                with self.computing():
                    values = measure(window, output)
                self._note(window.num_targets, time.perf_counter() - began)
                yield window, values
                began = time.perf_counter()
        finally:
            self._pace = None

    def _nll(self, window: Window, output: Output) -> Tensor:
        return self.head.nll(output.hidden, window.targets)

    def _chosen_threads(self) -> Threads | None:
        """Threads whose number is chosen while computing, if it is not set and changes no bit."""
        with kernels.use(self.kernels), threads.use(None):
            free = any_threads(self.model, self.head, self.device, self.precision)
            return Threads(torch.get_num_threads()) if free and not self.threads else None

    def _note(self, num_tokens: int, seconds: float) -> None:
        """Note the time of a window, after which another number of threads may be chosen."""
        with threads.use(None):
            if self._pace and (message := self._pace.worked(num_tokens, seconds)):
                log.info("%s", message)

    def nll(self, text: str, *, protocol: Protocol | None = None) -> float:
        """Mean nll in nats of the text's tokens, including its closing `<eos>`."""
        protocol = protocol or self.protocol
        loader = self.loader(Text.of(text, self.tokenizer, protocol == "sentence"), protocol)
        *_, (nll_sum, num_tokens) = self.nll_sums(loader)
        return nll_sum / num_tokens

    def perplexity(self, text: str, *, protocol: Protocol | None = None) -> float:
        """exp of the mean nll."""
        return perplexity(self.nll(text, protocol=protocol))

    def score(self, text: str, *, protocol: Protocol | None = None) -> list[TokenScore]:
        """Each token of the text, including its closing `<eos>`, and how it was predicted."""
        protocol = protocol or self.protocol
        read = Text.of(text, self.tokenizer, by_line=protocol == "sentence")
        return list(self.scores(read, protocol))

    def scores(
        self, text: Text, protocol: Protocol | None = None, num_top: int = 5
    ) -> Iterator[TokenScore]:
        """As `score`, but computed window by window as the scores are asked for."""
        surfaces = enumerate(text.pieces(self.tokenizer))
        loader = self.loader(text, protocol or self.protocol, positions=SCORED_POSITIONS)
        for window, output in self.read(loader):
            rows: list[tuple[Any, ...]] = []
            with self.computing():
                targets = window.targets[window.mask]
                for log_prob in self.head.log_prob(output.hidden[window.mask][None]):
                    rows += measures(log_prob, targets[len(rows) :], num_top)
            for token, nll, entropy, rank, probabilities, ids in rows:
                top = tuple(zip(map(self._name, ids), probabilities, strict=True))
                position, surface = next(surfaces)
                measured = (nll, nll / math.log(2), entropy, rank, top)
                yield TokenScore(token, surface, *measured, position in text.unknown)

    @cached_property
    def word_starts(self) -> npt.NDArray[np.bool_] | None:
        """The tokens that begin a word; see `tokenizer.boundaries`."""
        return word_starts(self.tokenizer)

    def table(
        self,
        frame: Any,
        text_column: str = "sentence",
        *,
        context_column: str | None = None,
        spillover: int = 0,
        first_word: FirstWord = "scored",
        joined_by: Joint = "space",
        prefix: str = "",
        protocol: Protocol | None = None,
    ) -> Any:
        """A row for each word of the texts in a column, as `lmkit score table=` writes them: the
        item's columns, then the word and its measures; for the settings see `table.Layout`.

        frame: a pandas DataFrame, a pyarrow Table, or a list of dicts; the result is of its kind.
        """
        settings = (context_column, spillover, first_word, joined_by, prefix, protocol)
        return table.of_frame(self, frame, table.Layout(text_column, *settings))

    def generate(
        self,
        prompt: str = "",
        *,
        num_tokens: int = 50,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        num_samples: int = 1,
        seed: int = 1,
        stop: str | None = None,
    ) -> list[str]:
        """Texts that begin with the prompt; for the settings see `sampling.Sampling`."""
        sampling = Sampling(num_tokens, temperature, top_k, top_p, num_samples, seed, stop)
        ids = self.tokenizer.encode_text(prompt)
        if unknown := sum(token == self.tokenizer.unk_id for token in ids):
            log.warning(
                "%d of the prompt's %d tokens are not in the vocabulary: <unk> stands for them",
                *(unknown, len(ids)),
            )
        with self.computing():
            texts = sample_texts(
                self.model, self.head, self.tokenizer, prompt, sampling, self.protocol
            )
        return [prompt + text for text in texts]

    def _name(self, token: int) -> str:
        return "".join(self.tokenizer.pieces([token])) or (
            "<eos>" if token == self.tokenizer.eos_id else f"<{token}>"
        )


def _device(trainer: Mapping[str, Any]) -> tuple[str, str]:
    """The device and the precision in which a run's model computes on this machine."""
    name, precision = hardware.accelerator(trainer["accelerator"]), trainer["precision"]
    if not hardware.is_available(name):
        log.warning("trainer.accelerator=%s is not to be had here: computing on the cpu", name)
        name = "cpu"
    if precision == "auto" or (name, precision) == ("cpu", "16-mixed"):
        precision = hardware.precision(name)
    return name, precision
