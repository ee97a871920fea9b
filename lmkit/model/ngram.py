"""N-grams: a model that is counted, and sees the last words alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any

import numpy.typing as npt
import torch
import torch.nn.functional as F
from annotated_types import Ge, Le
from torch import Tensor

from lmkit.model.base import Counted, LanguageModel, Output
from lmkit.model.state import States
from lmkit.ngrams import counted, estimated, read_symbols
from lmkit.ranges import Count


class NGram(LanguageModel):
    """Interpolated modified Kneser-Ney n-grams (Chen and Goodman 1999; as KenLM's lmplz).

    The hidden vector is the context itself, order - 1 symbols as int64: tokens, vocabulary_size for
    the <eos> with which a document begins, and -1 where there is nothing. The state is the same.
    The tables in which the head looks contexts up are counted once over the train split.

    order: of the longest n-grams; 1 sees no context.
    prune: by order, n-grams that occur so often or less are left out, as by lmplz --prune; the last
    number holds for all higher orders.
    """

    counted = True
    any_threads = True

    def __init__(
        self,
        vocabulary_size: int,
        *,
        order: Annotated[int, Ge(1), Le(7)] = 5,
        prune: list[Count] | None = None,
    ) -> None:
        super().__init__(vocabulary_size, 0, order - 1, tie_weights=False, init_range=None)
        self.order = order
        self.prune = prune or []
        self.start: Tensor
        # The token that is the beginning of a text where nothing is before it; -1: no token is.
        self.register_buffer("start", torch.tensor(-1))

    @staticmethod
    def mistakes(config: Mapping[str, Any], at: str) -> list[str]:
        """Mistakes that show only when the values are compared with one another."""
        order, prune = config["order"], config["prune"] or []
        shown = f"{at}.prune=[{','.join(map(str, prune))}]"
        wrong = []
        if len(prune) > order:
            wrong.append(f"{shown} has {len(prune)} numbers but {at}.order={order}")
        if prune and prune[0] != 0:
            wrong.append(f"{shown}: the first, of single tokens, must be 0; all of them stay")
        if prune != sorted(prune):
            wrong.append(f"{shown}: must not fall, as each n-gram needs the shorter ones in it")
        return wrong

    def count(
        self,
        tokens: npt.ArrayLike,
        unit_ends: npt.ArrayLike | None,
        eos_id: int,
        advance: Callable[[float], None],
    ) -> Counted:
        text = read_symbols(
            tokens,
            unit_ends,
            eos_id=eos_id,
            vocabulary_size=self.vocabulary_size,
            order=self.order,
        )
        whole = len(text.ids) * self.order
        levels = counted(text, lambda positions: advance(positions / whole))
        tables, discounts = estimated(levels, self.vocabulary_size, self.prune)
        self.start.fill_(-1 if unit_ends is None else eos_id)
        report = [
            {"order": n, "ngrams": size, "discounts": list(found[:3]), "fallback": found.missing}
            for n, (size, found) in enumerate(zip(tables.sizes, discounts, strict=True), start=1)
        ]
        return Counted(tables.state(), report)

    def initial_state(self, num_lanes: int) -> States:
        return ((torch.full((num_lanes, self.order - 1), -1, device=self.start.device),),)

    def forward(self, tokens: Tensor, resets: Tensor, state: States) -> Output:
        ((past,),) = state
        before, time = past.shape[1], tokens.shape[1]
        if not before:
            hidden = tokens.new_empty(*tokens.shape, 0)
            return Output(hidden, hidden, state)
        alone = torch.cat([past[:, -1:] < 0, resets[:, :-1]], dim=1)  # nothing is before it
        symbols = tokens.masked_fill((tokens == self.start) & alone, self.vocabulary_size)
        symbols = torch.cat([past, symbols.masked_fill(resets, -1)], dim=1)
        position = torch.arange(before + time, device=tokens.device)
        last_reset = (F.pad(resets, (before, 0)) * position).cummax(dim=1).values
        windows = symbols.unfold(1, before, 1)[:, 1:]  # (lanes, time, before): up to each input
        positions = position.unfold(0, before, 1)[1:]
        hidden = windows.masked_fill(positions < last_reset[:, before:, None], -1)
        return Output(hidden, hidden, ((hidden[:, -1],),))
