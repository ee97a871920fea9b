"""A stack of recurrent layers over an embedding; each kind of cell adds a layer class."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from lmkit.errors import UserError
from lmkit.model.base import LanguageModel, Output
from lmkit.model.dropout import dropout, dropout_of_weight, numbered
from lmkit.model.layer import Layer, RecurrentInit, RecurrentLayer
from lmkit.model.residual import Norm, Residual
from lmkit.model.state import States
from lmkit.ranges import NonNegative, Positive, Share, Size


class Recurrent(LanguageModel):
    """An embedding and a stack of recurrent layers, with dropout on every connection that is not
    recurrent (Zaremba et al. 2014), and on those that are.

    embedding_size: of the vectors that tokens are looked up as.
    hidden_size: of each layer; with tie_weights the last is as large as the embedding (Merity et
    al. 2018).
    num_layers: one on the other.
    hidden_sizes: one for each layer, in the place of hidden_size and num_layers; with tie_weights
    the last must be embedding_size, unless the head has projections of its own, as head=mixture.
    dropout: share of the connections between layers that a step leaves out.
    embedding_dropout: the same below the first layer; null: as dropout.
    output_dropout: the same above the last layer; null: as dropout.
    locked_dropout: one mask for all positions of a window, another in each lane (Gal and Ghahramani
    2016; Merity et al. 2018).
    word_dropout: share of the words of the vocabulary that a window leaves out of its inputs,
    wherever they are (Gal and Ghahramani 2016; the embedding dropout of Merity et al. 2018).
    weight_dropout: share of the elements of the recurrent matrices that a window leaves out (Merity
    et al. 2018).
    zoneout: share of the units of a state that keep their value at a position (Krueger et al.
    2017); no kernel has it, so training is slower.
    fresh_state: share of the lanes in which a window of training begins from the zero state, as an
    evaluation does (deepmind/lamb has 0.01).
    tie_weights: one matrix for embedding and head (Press and Wolf 2017).
    init_range: embedding and head begin uniform between minus this and this; null: by their sizes.
    recurrent_init: how the layers' weights begin; uniform: as PyTorch's; xavier and orthogonal: the
    recurrent ones so, gate by gate (Glorot and Bengio 2010; Saxe et al. 2014), the others xavier; a
    number: uniform between minus this and this, with the biases.
    sum_layers: the outputs of all layers together are those of the stack, not the last one's alone
    (Melis et al. 2018).
    residual: the norm of the inputs of each layer, to whose outputs the inputs are added (He et al.
    2016); null: layers without a skip connection.
    expansion: with residual, a feed-forward layer behind each, so many times as wide; 0: none.
    """

    layer: type[RecurrentLayer]
    layers: Iterable[Layer]  # a ModuleList

    def __init__(
        self,
        vocabulary_size: int,
        *,
        embedding_size: Size = 200,
        hidden_size: Size = 200,
        num_layers: Size = 2,
        hidden_sizes: Sequence[Size] | None = None,
        dropout: Share = 0.0,
        embedding_dropout: Share | None = None,
        output_dropout: Share | None = None,
        locked_dropout: bool = False,
        word_dropout: Share = 0.0,
        weight_dropout: Share = 0.0,
        zoneout: Share = 0.0,
        fresh_state: Share = 0.0,
        tie_weights: bool = False,
        init_range: Positive | None = None,
        recurrent_init: RecurrentInit = "uniform",
        sum_layers: bool = False,
        residual: Norm | None = None,
        expansion: NonNegative = 0.0,
    ) -> None:
        sizes = [embedding_size, *(hidden_sizes or [hidden_size] * num_layers)]
        if tie_weights and not hidden_sizes:
            sizes[-1] = embedding_size
        if sum_layers and (residual or len(set(sizes[1:])) > 1):
            what = f"residual={residual}" if residual else f"layers of {sizes[1:]} units"
            raise UserError(
                f"model.sum_layers=true with {what}: the outputs of layers of one size are added; "
                "set model.sum_layers=false, or one size and no residual blocks (with "
                "model.tie_weights=true the last layer has model.embedding_size)"
            )
        super().__init__(vocabulary_size, embedding_size, sizes[-1], tie_weights, init_range)
        self.dropout = dropout
        self.embedding_dropout = dropout if embedding_dropout is None else embedding_dropout
        self.output_dropout = dropout if output_dropout is None else output_dropout
        self.locked_dropout = locked_dropout
        self.word_dropout = word_dropout
        self.fresh_state = fresh_state
        self.sum_layers = sum_layers
        self.residual = residual
        pairs = [(size, size) for size in sizes[1:]] if residual else pairwise(sizes)
        layers = [self.make_layer(*each, recurrent_init) for each in pairs]
        for number, layer in enumerate(layers):
            layer.number = number
            layer.weight_dropout = weight_dropout
            layer.zoneout = (zoneout,) * layer.num_states
        if residual:
            layers = Residual.stack(
                layers,
                sizes,
                norm=residual,
                expansion=expansion,
                tied=tie_weights,
                dropout=dropout,
                locked=locked_dropout,
            )
            self.any_threads = False
        self.layers = nn.ModuleList(layers)  # type: ignore[assignment]

    @property
    def cells(self) -> list[Layer]:
        """The layers that `make_layer` has made, without the blocks around them."""
        return [layer.cell if isinstance(layer, Residual) else layer for layer in self.layers]

    @staticmethod
    def mistakes(config: Mapping[str, Any], at: str) -> list[str]:
        """Mistakes that show only when the values are compared with one another."""
        found = []
        if config["hidden_sizes"] is not None and not config["hidden_sizes"]:
            found.append(f"{at}.hidden_sizes=[]: name the size of at least one layer")
        if config["expansion"] and not config["residual"]:
            found.append(
                f"{at}.expansion={config['expansion']:g} but {at}.residual=null: the feed-forward "
                f"layers are a part of residual blocks; set {at}.residual=rms_norm or "
                f"{at}.expansion=0"
            )
        return found

    def make_layer(self, input_size: int, hidden_size: int, init: RecurrentInit) -> Layer:
        """One layer, with initial weights; a subclass whose layers take more passes it here."""
        return self.layer(input_size, hidden_size, init)

    def initial_state(self, num_lanes: int) -> States:
        return tuple(layer.initial_state(num_lanes) for layer in self.layers)

    def forward(self, tokens: Tensor, resets: Tensor, state: States) -> Output:
        inner = 0.0 if self.residual else self.dropout  # a block has dropout of its own
        between = [inner] * (len(state) - 1)
        probabilities = [self.embedding_dropout, *between, self.output_dropout]
        names = numbered(probabilities)

        def dropped(tensor: Tensor, below: int) -> Tensor:
            """below: index of the layer whose input the tensor is."""
            shared = (1,) if self.locked_dropout else ()
            return dropout(tensor, probabilities[below], self.training, names[below], shared)

        hidden, state = self._embedded(tokens), self._begun(state)
        states, outputs = [], []
        for index, layer in enumerate(self.layers):
            hidden, layer_state = layer(dropped(hidden, index), resets, state[index])
            states.append(layer_state)
            outputs.append(hidden)
        if self.sum_layers:
            hidden = sum(outputs[1:], outputs[0])
        return Output(dropped(hidden, len(states)), hidden, tuple(states))

    def _begun(self, state: States) -> States:
        """The state that a window begins from; in training zero in some lanes."""
        if not (self.training and self.fresh_state):
            return state
        lanes = state[0][0].new_ones(len(state[0][0]))
        kept = dropout(lanes, self.fresh_state, True, "state") != 0
        zero = self.initial_state(len(lanes))
        return tuple(
            tuple(
                part.where(kept.view(-1, *[1] * (part.dim() - 1)), first)
                for part, first in zip(layer, firsts, strict=True)
            )
            for layer, firsts in zip(state, zero, strict=True)
        )

    def _embedded(self, tokens: Tensor) -> Tensor:
        """The tokens' vectors; in training without the words that this window leaves out."""
        vectors: Tensor = self.embedding(tokens)
        if not (self.training and self.word_dropout):
            return vectors
        words = vectors.new_ones(self.vocabulary_size)
        kept = dropout_of_weight(words, self.word_dropout, True, "words")
        return vectors * kept[tokens][..., None]
