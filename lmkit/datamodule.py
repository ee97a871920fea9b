"""Prepared stores to Lightning: one window loader per split."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np

from lmkit.corpus import Source
from lmkit.lanes import Protocol, WindowLoader
from lmkit.mixture import MixtureLoader
from lmkit.store import Prepared, prepare
from lmkit.stored import Mixture
from lmkit.tokenizer import Tokenizer

log = logging.getLogger(__name__)

# Below this share of real targets a training batch is mostly padding.
LOW_EFFICIENCY = 0.9


class DataModule(pl.LightningDataModule):
    """Windows of lanes by positions, over all processes.

    protocol: the state is reset before each document, before each sentence (line), or never
    (stream).
    batch_size: lanes that are trained on at a time, over all processes.
    bptt: positions of a window, through which gradients go back.
    eval_batch_size, eval_bptt: in evaluation, those of training unless given; they change speed
    alone, but under stream the number of lanes is part of the protocol.
    """

    def __init__(
        self,
        source: Source,
        tokenizer: Tokenizer,
        *,
        cache: Path,
        seed: int = 1,
        trained: bool = False,
        protocol: Protocol = "document",
        batch_size: int = 20,
        bptt: int = 35,
        eval_batch_size: int | None = None,
        eval_bptt: int | None = None,
    ) -> None:
        """`trained` says that the tokenizer is a run's own and must stay as it is."""
        super().__init__()
        self.source = source
        self.untrained = tokenizer
        self.cache = cache
        self.seed = seed
        self.trained = trained
        self.protocol = protocol
        self.batch_size = batch_size
        self.bptt = bptt
        self.eval_batch_size = batch_size if eval_batch_size is None else eval_batch_size
        self.eval_bptt = bptt if eval_bptt is None else eval_bptt
        self._prepared: Prepared | None = None
        self._warned = False  # of padding, also before a trial

    @staticmethod
    def check(**config: Any) -> list[str]:
        """Sizes that cannot be."""
        return [
            f"data.{key}={config[key]}: must be at least 1"
            for key in ("batch_size", "bptt", "eval_batch_size", "eval_bptt")
            if config.get(key) is not None and config[key] < 1
        ]

    def prepare(self) -> Prepared:
        """Make the stores and the tokenizer, or find them in the cache; once for each object."""
        if self._prepared is None:
            self._prepared = prepare(
                self.source,
                self.untrained,
                self.cache,
                trained=self.trained,
                by_line=self.protocol == "sentence",
            )
        return self._prepared

    @property
    def prepared(self) -> Prepared:
        """The stores and the tokenizer."""
        return self.prepare()

    @property
    def tokenizer(self) -> Tokenizer:
        return self.prepared.tokenizer

    def loader(
        self, split: str, *, train: bool = False, accumulate: int = 1, **layout: Any
    ) -> WindowLoader:
        """Windows of a split; `layout` may give protocol, num_lanes, bptt, rank, world_size."""
        defaults = {
            "protocol": self.protocol,
            "num_lanes": self.batch_size if train else self.eval_batch_size,
            "bptt": self.bptt if train else self.eval_bptt,
        }
        return WindowLoader(
            self.prepared.stores[split],
            eos_id=self.tokenizer.eos_id,
            seed=self.seed if train else None,
            accumulate=accumulate,
            **{**defaults, **layout},
        )

    def _rank(self) -> dict[str, Any]:
        trainer = self.trainer
        return {"rank": trainer.global_rank, "world_size": trainer.world_size} if trainer else {}

    def train_dataloader(self) -> WindowLoader | MixtureLoader:
        accumulate = self.trainer.accumulate_grad_batches if self.trainer else 1
        if isinstance(self.source, Mixture):
            texts, weights = zip(*self.prepared.mixture, strict=True)
            return MixtureLoader(
                texts,
                weights,
                eos_id=self.tokenizer.eos_id,
                num_lanes=self.batch_size,
                bptt=self.bptt,
                seed=self.seed,
                epoch_tokens=self.source.epoch_tokens,
                accumulate=accumulate,
                **self._rank(),
            )
        loader = self.loader("train", train=True, accumulate=accumulate, **self._rank())
        if loader.efficiency < LOW_EFFICIENCY and not self._warned:
            self._warned = True
            self._warn_of_padding(loader)
        return loader

    def val_dataloader(self) -> WindowLoader | list[WindowLoader]:
        return self.loader("valid", **self._rank()) if "valid" in self.prepared.stores else []

    def test_dataloader(self) -> WindowLoader | list[WindowLoader]:
        return self.loader("test", **self._rank()) if "test" in self.prepared.stores else []

    def _warn_of_padding(self, loader: WindowLoader) -> None:
        store = self.prepared.stores["train"]
        ends = store.document_ends if self.protocol == "document" else store.line_ends
        lengths = np.diff(np.asarray(ends, dtype=np.int64), prepend=0)
        longest = int(lengths.argmax())
        name = f" ({store.document_id(longest)})" if self.protocol == "document" else ""
        log.warning(
            "only %.0f%% of the positions in a training epoch are real targets: %d %ss over "
            "data.batch_size=%d lanes, the longest %s tokens%s; %slower data.batch_size, or use "
            "data.protocol=stream",
            100 * loader.efficiency,
            len(lengths),
            self.protocol,
            self.batch_size,
            f"{lengths[longest]:,}",
            name,
            f"{finer}, " if (finer := self.source.finer) and name else "",
        )
