"""A network over a fixed window of words, without recurrence."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmkit.model.base import LanguageModel, Output
from lmkit.model.dropout import dropout, numbered
from lmkit.model.state import States
from lmkit.ranges import Positive, Share, Size


class Window(LanguageModel):
    """A fixed window of the `context` previous words (Bengio et al. 2003, equation 1, without
    the direct connections): hidden = tanh(H [e_{t-n+1}; ..; e_t] + d).

    Words before the start of a document are zero vectors. The state is the last `context` - 1
    tokens, -1 where there is none. H and d start as in torch's nn.Linear, U(-1/sqrt(n), 1/sqrt(n))
    for n inputs.

    context: words that are seen.
    embedding_size: of the vectors that tokens are looked up as.
    hidden_size: of the hidden layer; with tie_weights it must be embedding_size, unless the head
    has projections of its own, as head=mixture.
    dropout: share of embedding and hidden units that a step leaves out.
    tie_weights: one matrix for embedding and head (Press and Wolf 2017).
    init_range: embedding and head begin uniform between minus this and this; null: by their sizes.
    """

    keeps_hidden_size = True

    def __init__(
        self,
        vocabulary_size: int,
        *,
        context: Size = 5,
        embedding_size: Size = 200,
        hidden_size: Size = 200,
        dropout: Share = 0.0,
        tie_weights: bool = False,
        init_range: Positive | None = None,
    ) -> None:
        super().__init__(vocabulary_size, embedding_size, hidden_size, tie_weights, init_range)
        self.context = context
        self.dropout = dropout
        self.projection = nn.Linear(context * embedding_size, hidden_size)

    def initial_state(self, num_lanes: int) -> States:
        device = self.embedding.weight.device
        return ((torch.full((num_lanes, self.context - 1), -1, device=device),),)

    def forward(self, tokens: Tensor, resets: Tensor, state: States) -> Output:
        ((past,),) = state
        time = tokens.shape[1]
        # A reset position holds no word, and hides every word before it.
        words = torch.cat([past, tokens.masked_fill(resets, -1)], dim=1)
        offset = past.shape[1]
        position = torch.arange(words.shape[1], device=words.device)
        reset_at = F.pad(resets, (offset, 0)) * position
        last_reset = reset_at.cummax(dim=1).values  # (lanes, context - 1 + time)
        embedded = self.embedding(words.clamp_min(0))
        below, above = numbered([self.dropout] * 2)
        embedded = dropout(embedded, self.dropout, self.training, below)
        slots = []
        for back in range(self.context - 1, -1, -1):
            begin = offset - back
            word = words[:, begin : begin + time]
            hidden_by_reset = position[begin : begin + time] < last_reset[:, offset:]
            absent = (word < 0) | hidden_by_reset
            slots.append(embedded[:, begin : begin + time].masked_fill(absent[..., None], 0.0))
        raw = torch.tanh(self.projection(torch.cat(slots, dim=-1)))
        kept = words[:, time:].masked_fill(position[time:] < last_reset[:, -1:], -1)
        return Output(dropout(raw, self.dropout, self.training, above), raw, ((kept,),))
