"""A stack of recurrent layers over an embedding; each kind of cell adds a layer class."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

from torch import Tensor, nn

from lmkit.model.base import LanguageModel, Output
from lmkit.model.dropout import dropout, numbered
from lmkit.model.layer import RecurrentInit, RecurrentLayer
from lmkit.model.state import States
from lmkit.ranges import Positive, Share, Size


class Recurrent(LanguageModel):
    """An embedding and a stack of recurrent layers, with dropout on every connection that is not
    recurrent (Zaremba et al. 2014).

    embedding_size: of the vectors that tokens are looked up as.
    hidden_size: of each layer; with tie_weights the last is as large as the embedding (Merity et
    al. 2018).
    num_layers: one on the other.
    dropout: share of the connections between layers that a step leaves out.
    embedding_dropout, output_dropout: the same below the first and above the last layer; null: as
    dropout.
    locked_dropout: one mask for all positions of a window, another in each lane (Gal and Ghahramani
    2016; Merity et al. 2018).
    tie_weights: one matrix for embedding and head (Press and Wolf 2017).
    init_range: embedding and head begin uniform between minus this and this; null: by their sizes.
    recurrent_init: how the layers' weights begin; uniform: as PyTorch's; xavier and orthogonal: the
    recurrent ones so, gate by gate (Glorot and Bengio 2010; Saxe et al. 2014), the others xavier.
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
        locked_dropout: bool = False,
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
        self.locked_dropout = locked_dropout
        self.layers = nn.ModuleList(  # type: ignore[assignment]
            self.layer(size, next_size, recurrent_init) for size, next_size in pairwise(sizes)
        )

    def initial_state(self, num_lanes: int) -> States:
        return tuple(layer.initial_state(num_lanes) for layer in self.layers)

    def forward(self, tokens: Tensor, resets: Tensor, state: States) -> Output:
        between = [self.dropout] * (len(state) - 1)
        probabilities = [self.embedding_dropout, *between, self.output_dropout]
        names = numbered(probabilities)

        def dropped(tensor: Tensor, below: int) -> Tensor:
            """below: index of the layer whose input the tensor is."""
            shared = (1,) if self.locked_dropout else ()
            return dropout(tensor, probabilities[below], self.training, names[below], shared)

        hidden = self.embedding(tokens)
        states = []
        for index, layer in enumerate(self.layers):
            hidden, layer_state = layer(dropped(hidden, index), resets, state[index])
            states.append(layer_state)
        return Output(dropped(hidden, len(states)), hidden, tuple(states))
