"""The callback that keeps the weights that a training has after so many tokens or words."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer

from lmkit.errors import UserError
from lmkit.ranges import Size
from lmkit.store import TokenStore
from lmkit.system.rendezvous import broadcast
from lmkit.tokenizer import Tokenizer
from lmkit.training.fit_loop import is_fitting, is_within_update
from lmkit.windows import DataModule

log = logging.getLogger(__name__)

MILLION = 1_000_000
# Charpentier et al. 2025: each million words up to ten million, then each ten, then each hundred.
BABYLM = tuple(MILLION * n for n in (*range(1, 10), *range(10, 100, 10), *range(100, 1001, 100)))
COUNTED = 1 << 20  # tokens that are decoded at a time


class Milestones(Callback):
    """Writes the weights into `checkpoints/` after the first update with so many tokens or words,
    and keeps them: `chck_10M.ckpt` for words, as BabyLM names them, `tokens_10M.ckpt` for tokens.

    They can be evaluated and exported like any checkpoint; a run does not resume from them.

    words: numbers of words seen, in all epochs together, or babylm: each million up to 10 million,
    each 10 million up to 100, each 100 million up to a billion. A word is what stands between
    spaces; those seen are the tokens seen times the words for each token in the train split.
    tokens: numbers of tokens seen.
    """

    def __init__(
        self,
        *,
        words: Literal["babylm"] | list[Size] | None = "babylm",
        tokens: list[Size] | None = None,
    ) -> None:
        chosen = BABYLM if words == "babylm" else words
        self.words = sorted(map(int, {*(chosen or ())}))
        self.tokens = sorted({*(tokens or ())})
        if not (self.words or self.tokens):
            raise ValueError("words or tokens: give the numbers at which weights are kept")
        self.words_per_token: float | None = None
        self._before = 0  # tokens seen at the end of the last update

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._before = int(pl_module.tokens_seen)  # type: ignore[arg-type]
        if not self.words or self.words_per_token is not None:
            return
        data = getattr(trainer, "datamodule", None)
        if not isinstance(data, DataModule) or data.prepared.mixed:
            raise UserError(
                "callbacks.milestones.words: only of data with one train split; give tokens"
            )
        ratio = None
        if trainer.is_global_zero:
            store = data.prepared.stores["train"]
            ratio = num_words(store, data.tokenizer) / store.num_tokens
            log.info("%.4f words for each token of the train split", ratio)
        self.words_per_token = broadcast(ratio)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not is_fitting(trainer) or is_within_update(trainer) or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        before, now = self._before, int(pl_module.tokens_seen)  # type: ignore[arg-type]
        self._before = now
        if reached := self._reached(before, now):
            self._save(trainer, reached)

    def _reached(self, before: int, now: int) -> list[str]:
        """The names of the milestones between two numbers of tokens seen."""
        names = [f"tokens_{short(n)}" for n in self.tokens if before < n <= now]
        ratio = self.words_per_token or 0.0
        return names + [f"chck_{short(n)}" for n in self.words if before * ratio < n <= now * ratio]

    def _save(self, trainer: Trainer, names: Sequence[str]) -> None:
        weights = trainer.strategy.lightning_module_state_dict()
        if trainer.is_global_zero:
            state = {
                "state_dict": weights,
                "global_step": trainer.global_step,
                "epoch": trainer.current_epoch,
            }
            for name in names:
                path = Path(trainer.default_root_dir) / "checkpoints" / f"{name}.ckpt"
                trainer.strategy.checkpoint_io.save_checkpoint(state, path)

    def state_dict(self) -> dict[str, Any]:
        return {"words_per_token": self.words_per_token}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.words_per_token = state_dict["words_per_token"]


def short(number: int) -> str:
    """1M for a million, 250K for a quarter of it, else the digits."""
    for unit, letter in ((MILLION, "M"), (1000, "K")):
        if number % unit == 0:
            return f"{number // unit}{letter}"
    return str(number)


def num_words(store: TokenStore, tokenizer: Tokenizer) -> int:
    """What stands between spaces in a split, counted document by document."""
    ends = np.asarray(store.document_ends)
    total = begin = 0
    while begin < store.num_tokens:
        # Whole documents, of about so many tokens.
        at = int(np.searchsorted(ends, begin + COUNTED))
        end = int(ends[min(at, len(ends) - 1)])
        total += len(tokenizer.decode(store.tokens[begin:end].tolist()).split())
        begin = end
    return total
