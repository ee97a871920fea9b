"""Lightning's data module: one window loader for each split of the prepared stores."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np

from lmkit.corpus import Corpus
from lmkit.ranges import Size
from lmkit.store import Prepared, prepare
from lmkit.tokenizer import Tokenizer
from lmkit.windows.lanes import Protocol
from lmkit.windows.loader import WindowLoader
from lmkit.windows.mixture import MixtureLoader

log = logging.getLogger(__name__)

# Below this share of real targets a training batch is mostly padding.
LOW_EFFICIENCY = 0.9


class DataModule(pl.LightningDataModule):
    """Windows of lanes by positions, over all processes.

    protocol: the state is reset before each document, before each sentence (line), or never
    (stream).
    batch_size: lanes that are trained on at a time, over all processes.
    bptt: positions of a window, through which gradients go back.
    variable_bptt: in training the lengths of windows are drawn, about bptt and seldom about half of
    it, and the learning rate of each update is scaled by its length (Merity et al. 2018).
    eval_batch_size, eval_bptt: in evaluation, those of training unless given; they change speed
    alone, but under stream the number of lanes is part of the protocol.
    """

    def __init__(
        self,
        source: Corpus,
        tokenizer: Tokenizer | None,
        *,
        cache: str | PathLike[str] = Path("outputs") / ".cache",
        seed: int = 1,
        protocol: Protocol = "document",
        batch_size: Size = 20,
        bptt: Size = 35,
        variable_bptt: bool = False,
        eval_batch_size: Size | None = None,
        eval_bptt: Size | None = None,
    ) -> None:
        """tokenizer: trained on the source unless it is; None: that of a source of tokens. cache:
        the directory of what is prepared, once for each source and tokenizer. seed: of the order of
        documents."""
        super().__init__()
        self.source = source
        self._tokenizer = tokenizer
        self.cache = Path(cache)
        self.seed = seed
        self.protocol = protocol
        self.batch_size = batch_size
        self.bptt = bptt
        self.variable_bptt = variable_bptt
        self.eval_batch_size = batch_size if eval_batch_size is None else eval_batch_size
        self.eval_bptt = bptt if eval_bptt is None else eval_bptt
        self._prepared: Prepared | None = None
        self._warned = False  # of padding, also before a trial
        self._training: WindowLoader | MixtureLoader | None = None
        self._read_by: pl.Trainer | None = None

    @classmethod
    def evaluation_shape(cls, config: Mapping[str, Any]) -> tuple[int, int]:
        """Lanes and positions of the windows in which a `data` group evaluates."""
        defaults = {name: p.default for name, p in inspect.signature(cls).parameters.items()}
        sizes = {**defaults, **config}
        lanes = sizes["eval_batch_size"] or sizes["batch_size"]
        return lanes, sizes["eval_bptt"] or sizes["bptt"]

    def prepare(self) -> Prepared:
        """Make the stores and the tokenizer, or find them in the cache; later calls return them."""
        if self._prepared is None:
            self._prepared = prepare(
                self.source,
                self._tokenizer,
                self.cache,
                by_line=self.protocol == "sentence",
            )
        return self._prepared

    def prepare_data(self) -> None:
        """Lightning's hook, in one process of a node, before the others look for what it makes."""
        self.prepare()

    @property
    def prepared(self) -> Prepared:
        """The stores and the tokenizer."""
        return self.prepare()

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer, trained: the text is prepared for it where it is not."""
        return self.prepared.tokenizer

    def loader(self, split: str, *, train: bool = False, **layout: Any) -> WindowLoader:
        """The windows of a split; `layout` overrides arguments of `WindowLoader`."""
        defaults = {
            "protocol": self.protocol,
            "num_lanes": self.batch_size if train else self.eval_batch_size,
            "bptt": self.bptt if train else self.eval_bptt,
            "variable_bptt": self.variable_bptt,
        }
        return WindowLoader(
            self.prepared.stores[split],
            eos_id=self.tokenizer.eos_id,
            seed=self.seed if train else None,
            **{**defaults, **layout},
        )

    def _rank(self) -> dict[str, Any]:
        trainer = self.trainer
        return {"rank": trainer.global_rank, "world_size": trainer.world_size} if trainer else {}

    def num_windows(self, split: str) -> int:
        """Windows of an epoch over all processes, without any limit."""
        return len(self._training_loader() if split == "train" else self.loader(split))

    def train_dataloader(self) -> WindowLoader | MixtureLoader:
        """The same loader however often the trainer asks: it knows which epoch comes next."""
        if self._training is None or self._read_by is not self.trainer:
            self._read_by = self.trainer
            self._training = self._training_loader(**self._rank(), **self._updates())
            if isinstance(self._training, WindowLoader):
                self._warn_of_padding(self._training)
        return self._training

    def _updates(self) -> dict[str, Any]:
        """How many windows make an epoch and an update; `limits.in_windows` has counted them."""
        trainer = self.trainer
        if trainer is None:
            return {}
        limit = trainer.limit_train_batches
        updates = {
            "accumulate": trainer.accumulate_grad_batches,
            "limit": limit if isinstance(limit, int) else None,
        }
        fixed = trainer.overfit_batches  # type: ignore[attr-defined]
        return {**updates, "reshuffle": False} if fixed else updates

    def _training_loader(self, **settings: Any) -> WindowLoader | MixtureLoader:
        if self.prepared.mixed is None:
            return self.loader("train", train=True, **settings)
        stores, weights, epoch_tokens = self.prepared.mixed
        return MixtureLoader(
            stores,
            weights,
            eos_id=self.tokenizer.eos_id,
            num_lanes=self.batch_size,
            bptt=self.bptt,
            variable_bptt=self.variable_bptt,
            seed=self.seed,
            epoch_tokens=epoch_tokens,
            **settings,
        )

    def val_dataloader(self) -> WindowLoader | list[WindowLoader]:
        return self.loader("valid", **self._rank()) if "valid" in self.prepared.stores else []

    def test_dataloader(self) -> WindowLoader | list[WindowLoader]:
        return self.loader("test", **self._rank()) if "test" in self.prepared.stores else []

    def _warn_of_padding(self, loader: WindowLoader) -> None:
        if loader.efficiency >= LOW_EFFICIENCY or self._warned:
            return
        self._warned = True
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
