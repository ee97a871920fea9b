"""The language models: tokens, resets and state to hidden vectors and the next state."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmkit.dropout import dropout
from lmkit.embedding import Embedding
from lmkit.ranges import Positive, Real, Share, Size
from lmkit.recurrent import (
    ElmanLayer,
    GRULayer,
    LSTMLayer,
    Nonlinearity,
    RecurrentInit,
    RecurrentLayer,
    State,
)

States = tuple[State, ...]


def detached(states: States) -> States:
    """The same state, cut from the graph: where truncated BPTT truncates."""
    return tuple(tuple(tensor.detach() for tensor in layer) for layer in states)


def finite(states: States) -> States:
    """The same state, the zero state in lanes where it is not finite."""
    return tuple(
        tuple(
            tensor.where(torch.isfinite(tensor).all(1, keepdim=True), 0)
            if tensor.is_floating_point()
            else tensor
            for tensor in layer
        )
        for layer in states
    )


def joined(shares: Sequence[States]) -> States:
    """The state of all lanes, from those of the processes that share them, by rank."""
    return tuple(
        tuple(torch.cat(tensors) for tensors in zip(*layer, strict=True))
        for layer in zip(*shares, strict=True)
    )


def share_of(states: States, rank: int, world_size: int) -> States:
    """What a process has of the state of all lanes."""
    return tuple(
        tuple(tensor.chunk(world_size)[rank].clone() for tensor in layer) for layer in states
    )


class LanguageModel(nn.Module):
    """What the head and the task know of a model.

    `embedding` is the look-up E of shape (vocabulary_size, embedding_size); with `tie_weights`
    the head uses it as its matrix too (Press and Wolf 2017; Inan et al. 2017). `init_range` bounds
    the uniform start of embedding and head; null has them normal, scaled by their sizes.
    """

    # Whether on compiled kernels results are bit for bit the same with any number of threads.
    any_threads = False

    def __init__(
        self,
        vocabulary_size: int,
        embedding_size: int,
        hidden_size: int,
        tie_weights: bool,
        init_range: float | None,
    ) -> None:
        super().__init__()
        self.vocabulary_size = vocabulary_size
        self.hidden_size = hidden_size
        self.tie_weights = tie_weights
        self.init_range = init_range
        self.embedding = Embedding(vocabulary_size, embedding_size, init_range, tie_weights)

    @staticmethod
    def check(**config: Any) -> list[str]:
        """Mistakes that only the values together show."""
        return []

    def initial_state(self, num_lanes: int) -> States:
        """The zero state h_0: a tuple per layer of tensors whose dimension 0 is the lane."""
        raise NotImplementedError

    def forward(self, tokens: Tensor, resets: Tensor, state: States) -> tuple[Tensor, States]:
        """tokens int64 and resets bool, both (batch, time) -> hidden (batch, time, hidden_size)
        and the state after the last position."""
        raise NotImplementedError


class Reader:
    """A model that reads a text window by window, with the state that it carries between them.

    The state is detached after each window (truncated BPTT); None: the next one begins from zero.
    """

    def __init__(self, model: LanguageModel) -> None:
        self.model = model
        self.state: States | None = None

    def read(self, tokens: Tensor, resets: Tensor) -> Tensor:
        """tokens int64 and resets bool, both (lanes, time) -> hidden (lanes, time, hidden_size).

        There may be fewer lanes than before: those that have ended are always the last ones.
        """
        lanes = len(tokens)
        state = self.model.initial_state(lanes) if self.state is None else self.state
        state = tuple(tuple(tensor[:lanes] for tensor in layer) for layer in state)
        hidden, state = self.model(tokens, resets, state)
        self.state = detached(state)
        return hidden

    def repeat(self, times: int) -> None:
        """Go on in so many lanes from where the one lane is."""
        assert self.state is not None
        self.state = tuple(tuple(tensor.repeat(times, 1) for tensor in each) for each in self.state)


class Recurrent(LanguageModel):
    """Embedding, a stack of recurrent layers, dropout on every connection that is not
    recurrent (Zaremba et al. 2014).

    embedding_size: of the vectors that tokens are looked up as.
    hidden_size: of each layer; with tie_weights the last is as large as the embedding (Merity et
    al. 2018).
    num_layers: one on the other.
    dropout: share of the connections between layers that a step leaves out.
    embedding_dropout, output_dropout: the same below the first and above the last layer; null: as
    dropout.
    tie_weights: one matrix for embedding and head (Press and Wolf 2017).
    init_range: embedding and head begin uniform between minus this and this; null: by their sizes.
    recurrent_init: how the layers' weights begin, see `RecurrentLayer.initialise`.
    """

    layer: type[RecurrentLayer]
    layers: Iterable[RecurrentLayer]  # a ModuleList

    def __init__(
        self,
        vocabulary_size: int,
        *,
        embedding_size: Size = 200,
        hidden_size: Size = 200,
        num_layers: Size = 2,
        dropout: Share = 0.0,
        embedding_dropout: Share | None = None,
        output_dropout: Share | None = None,
        tie_weights: bool = False,
        init_range: Positive | None = None,
        recurrent_init: RecurrentInit = "uniform",
    ) -> None:
        sizes = [embedding_size, *[hidden_size] * num_layers]
        if tie_weights:
            sizes[-1] = embedding_size
        super().__init__(vocabulary_size, embedding_size, sizes[-1], tie_weights, init_range)
        self.dropout = dropout
        self.embedding_dropout = dropout if embedding_dropout is None else embedding_dropout
        self.output_dropout = dropout if output_dropout is None else output_dropout
        self.layers = nn.ModuleList(  # type: ignore[assignment]
            self.layer(size, next_size, recurrent_init) for size, next_size in pairwise(sizes)
        )

    def initial_state(self, num_lanes: int) -> States:
        return tuple(layer.initial_state(num_lanes) for layer in self.layers)

    def forward(self, tokens: Tensor, resets: Tensor, state: States) -> tuple[Tensor, States]:
        hidden = dropout(self.embedding(tokens), self.embedding_dropout, self.training)
        states = []
        for index, layer in enumerate(self.layers):
            if index:
                hidden = dropout(hidden, self.dropout, self.training)
            hidden, layer_state = layer(hidden, resets, state[index])
            states.append(layer_state)
        return dropout(hidden, self.output_dropout, self.training), tuple(states)


class GRU(Recurrent):
    """Gated recurrent units (Cho et al. 2014)."""

    layer = GRULayer


class LSTM(Recurrent):
    """Long short-term memory (Hochreiter and Schmidhuber 1997).

    forget_gate_bias: of every forget gate at the start (Gers et al. 2000; Jozefowicz et al. 2015
    use 1); null: as the other biases.
    """

    layer = LSTMLayer
    any_threads = True

    def __init__(
        self,
        vocabulary_size: int,
        *,
        forget_gate_bias: Real | None = None,
        **settings: Any,
    ) -> None:
        """settings: those of `Recurrent`."""
        super().__init__(vocabulary_size, **settings)
        if forget_gate_bias is not None:
            for layer in self.layers:
                forget = slice(layer.hidden_size, 2 * layer.hidden_size)
                nn.init.constant_(layer.bias_ih.data[forget], forget_gate_bias)
                nn.init.zeros_(layer.bias_hh.data[forget])


class Elman(Recurrent):
    """The simple recurrent network of Elman 1990.

    nonlinearity: of the hidden units; sigmoid starts as tanh, seen from 0 to 1.
    """

    layer = ElmanLayer

    def __init__(
        self,
        vocabulary_size: int,
        *,
        nonlinearity: Nonlinearity = "tanh",
        **settings: Any,
    ) -> None:
        """settings: those of `Recurrent`."""
        super().__init__(vocabulary_size, **settings)
        for index, layer in enumerate(self.layers):
            assert isinstance(layer, ElmanLayer)
            layer.nonlinearity = nonlinearity
            if nonlinearity == "sigmoid":
                layer.start_as_tanh(inputs_are_hidden=index > 0)


class Window(LanguageModel):
    """A fixed window of the `context` previous words (Bengio et al. 2003, equation 1, without
    the direct connections): hidden = tanh(H [e_{t-n+1}; ..; e_t] + d).

    What lies before the start of a document is the zero vector. The state is the last
    `context` - 1 tokens, -1 where there is none. H and d start as torch's nn.Linear has them,
    U(-1/sqrt(n), 1/sqrt(n)) for n inputs.

    context: words that are seen.
    embedding_size: of the vectors that tokens are looked up as.
    hidden_size: of the hidden layer; with tie_weights it is that of the embedding.
    dropout: share of embedding and hidden units that a step leaves out.
    tie_weights: one matrix for embedding and head (Press and Wolf 2017).
    init_range: embedding and head begin uniform between minus this and this; null: by their sizes.
    """

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

    @staticmethod
    def check(**config: Any) -> list[str]:
        """Mistakes that only the values together show."""
        if config["tie_weights"] and config["hidden_size"] != config["embedding_size"]:
            return [
                f"model.hidden_size={config['hidden_size']} but model.embedding_size="
                f"{config['embedding_size']}: tied weights need them equal; set "
                "model.tie_weights=false or make them equal"
            ]
        return []

    def initial_state(self, num_lanes: int) -> States:
        device = self.embedding.weight.device
        return ((torch.full((num_lanes, self.context - 1), -1, device=device),),)

    def forward(self, tokens: Tensor, resets: Tensor, state: States) -> tuple[Tensor, States]:
        ((past,),) = state
        time = tokens.shape[1]
        # A reset position holds no word, and hides every word before it.
        words = torch.cat([past, tokens.masked_fill(resets, -1)], dim=1)
        offset = past.shape[1]
        place = torch.arange(words.shape[1], device=words.device)
        reset_at = F.pad(resets, (offset, 0)) * place
        last_reset = reset_at.cummax(dim=1).values  # (batch, context - 1 + time)
        embedded = self.embedding(words.clamp_min(0))
        embedded = dropout(embedded, self.dropout, self.training)
        slots = []
        for back in range(self.context - 1, -1, -1):
            begin = offset - back
            word = words[:, begin : begin + time]
            hidden_by_reset = place[begin : begin + time] < last_reset[:, offset:]
            absent = (word < 0) | hidden_by_reset
            slots.append(embedded[:, begin : begin + time].masked_fill(absent[..., None], 0.0))
        hidden = torch.tanh(self.projection(torch.cat(slots, dim=-1)))
        kept = words[:, time:].masked_fill(place[time:] < last_reset[:, -1:], -1)
        return dropout(hidden, self.dropout, self.training), ((kept,),)
