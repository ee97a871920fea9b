"""Recurrent language models of lmkit for Hugging Face transformers, in plain PyTorch.

This file needs no lmkit: it lies beside the weights, where `trust_remote_code=True` finds it.

A text is read from the zero state, after the token `<eos>`, as in lmkit. Where a text does not
begin with it, the model reads it first, so that `model(**tokenizer(text))` and a text with
`tokenizer.bos_token` before it predict the same. Positions that `attention_mask` leaves out change
nothing, wherever they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.generation import utils as generation
from transformers.utils import ModelOutput

States = tuple[Tensor, ...]  # of all layers, each (batch, size)

# The name under which this version of transformers keeps a model's state while it generates.
CACHE = "past_key_values" if "past_key_values" in generation.ALL_CACHE_NAMES else "state"


class LmkitConfig(PretrainedConfig):
    """The sizes of a model.

    cell: lstm, gru, tanh, relu, sigmoid (Elman networks), or window (Bengio et al. 2003).
    layer_sizes: of the recurrent layers, or of the window's hidden layer.
    context: tokens that a window has. output_bias: whether the output layer has a bias.
    """

    model_type = "lmkit"

    def __init__(
        self,
        cell: str = "lstm",
        vocab_size: int = 2,
        embedding_size: int = 1,
        layer_sizes: tuple[int, ...] | list[int] = (1,),
        context: int = 0,
        output_bias: bool = True,
        use_cache: bool = True,
        bos_token_id: int = 0,
        eos_token_id: int = 0,
        **kwargs: Any,
    ) -> None:
        self.cell = cell
        self.vocab_size = vocab_size
        self.embedding_size = embedding_size
        self.layer_sizes = list(layer_sizes)
        self.context = context
        self.output_bias = output_bias
        self.use_cache = use_cache
        self.hidden_size = self.layer_sizes[-1]
        self.num_hidden_layers = len(self.layer_sizes)
        for name in ("hidden_size", "num_hidden_layers"):  # in the file, and follow from the sizes
            kwargs.pop(name, None)
        super().__init__(bos_token_id=bos_token_id, eos_token_id=eos_token_id, **kwargs)


@dataclass
class LmkitOutput(ModelOutput):
    """last_hidden_state: (batch, time, hidden_size). state: after the last position.
    hidden_states: of the embedding and of each layer."""

    last_hidden_state: Tensor | None = None
    state: States | None = None
    hidden_states: tuple[Tensor, ...] | None = None


@dataclass
class LmkitCausalLMOutput(ModelOutput):
    """logits: (batch, time, vocabulary), of the token after each position."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    state: States | None = None
    hidden_states: tuple[Tensor, ...] | None = None


class LmkitPreTrainedModel(PreTrainedModel):
    config_class = LmkitConfig
    base_model_prefix = "model"
    _is_stateful = True  # a state cannot be cut back, as speculative decoding would

    def _init_weights(self, module: nn.Module) -> None:
        """New weights are PyTorch's own."""


class LmkitModel(LmkitPreTrainedModel):
    """The hidden vectors of a text."""

    def __init__(self, config: LmkitConfig) -> None:
        super().__init__(config)
        self.embedding = nn.Embedding(config.vocab_size, config.embedding_size)
        if config.cell == "window":
            width = config.context * config.embedding_size
            self.projection = nn.Linear(width, config.hidden_size)
        else:
            sizes = [config.embedding_size, *config.layer_sizes]
            self.layers = nn.ModuleList(map(self._layer, sizes[:-1], sizes[1:]))
        self.post_init()

    def _layer(self, size: int, next_size: int) -> nn.RNNBase:
        if self.config.cell in ("lstm", "gru"):
            return getattr(nn, self.config.cell.upper())(size, next_size, batch_first=True)
        nonlinearity = "relu" if self.config.cell == "relu" else "tanh"
        return nn.RNN(size, next_size, nonlinearity=nonlinearity, batch_first=True)

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embedding

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.embedding = value

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        state: States | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        past_key_values: States | None = None,
        **kwargs: Any,
    ) -> LmkitOutput | tuple[Any, ...]:
        """input_ids (batch, time), or inputs_embeds (batch, time, embedding_size).
        attention_mask: (batch, at least time), of which the last positions count."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        state = past_key_values if state is None else state
        given = input_ids if inputs_embeds is None else inputs_embeds
        batch, time = given.shape[:2]
        mask = torch.ones(batch, time, dtype=torch.bool, device=given.device)
        if attention_mask is not None:
            mask = attention_mask[:, -time:].bool()
        order = torch.argsort(~mask, dim=1, stable=True)  # positions that count come first
        lengths = mask.sum(1)
        if input_ids is not None:
            input_ids = input_ids.gather(1, order)
        else:
            inputs_embeds = inputs_embeds.gather(1, order[..., None].expand_as(inputs_embeds))
        if state is None:
            state = self._beginning(None if input_ids is None else input_ids[:, 0], batch)
        outputs, state = self._read(input_ids, inputs_embeds, state, lengths)
        back = torch.argsort(order, dim=1)[..., None]
        outputs = [output.gather(1, back.expand_as(output)) for output in outputs]
        if use_cache is None:
            use_cache = self.config.use_cache
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        result = LmkitOutput(
            last_hidden_state=outputs[-1],
            state=state if use_cache else None,
            hidden_states=tuple(outputs) if output_hidden_states else None,
        )
        return _returned(self.config, return_dict, result)

    def _beginning(self, first: Tensor | None, batch: int) -> States:
        """The state before a text: zero before <eos>, else that after it. first: (batch,) ids."""
        zero = self._zero(batch)
        begin = torch.full((batch, 1), self.config.bos_token_id, device=zero[0].device)
        _, after = self._read(begin, None, zero, torch.ones(batch, dtype=torch.long))
        if first is None:
            return after
        is_begin = (first == self.config.bos_token_id)[:, None]
        return tuple(torch.where(is_begin, z, a) for z, a in zip(zero, after, strict=True))

    def _zero(self, batch: int) -> States:
        weight = self.embedding.weight
        if self.config.cell == "window":  # no token
            return (torch.full((batch, self.config.context - 1), -1, device=weight.device),)
        each = 2 if self.config.cell == "lstm" else 1
        sizes = [size for size in self.config.layer_sizes for _ in range(each)]
        return tuple(weight.new_zeros(batch, size) for size in sizes)

    def _read(
        self, tokens: Tensor | None, embeds: Tensor | None, state: States, lengths: Tensor
    ) -> tuple[list[Tensor], States]:
        """The hidden vectors of all layers, and the state after the first `lengths` positions."""
        hidden = self.embedding(tokens) if embeds is None else embeds
        if self.config.cell == "window":
            if tokens is None:
                raise ValueError("a window carries tokens: give input_ids")
            return self._read_window(tokens, hidden, state[0], lengths)
        outputs, states = [hidden], []
        each = 2 if self.config.cell == "lstm" else 1
        for index, layer in enumerate(self.layers):
            before = state[each * index : each * (index + 1)]
            hidden, after = _run(layer, hidden, before, lengths, self.config.cell == "sigmoid")
            outputs.append(hidden)
            states += after
        return outputs, tuple(states)

    def _read_window(
        self, tokens: Tensor, embedded: Tensor, past: Tensor, lengths: Tensor
    ) -> tuple[list[Tensor], States]:
        time, offset = tokens.shape[1], past.shape[1]
        words = torch.cat([past, tokens], dim=1)
        vectors = self.embedding(words.clamp_min(0)).masked_fill((words < 0)[..., None], 0.0)
        slots = [vectors[:, begin : begin + time] for begin in range(offset + 1)]
        hidden = torch.tanh(self.projection(torch.cat(slots, dim=-1)))
        kept = lengths.to(words.device)[:, None] + torch.arange(offset, device=words.device)
        return [embedded, hidden], (words.gather(1, kept),)


def _run(
    layer: nn.RNNBase, inputs: Tensor, state: States, lengths: Tensor, is_sigmoid: bool
) -> tuple[Tensor, list[Tensor]]:
    """A layer's outputs, and its state after the first `lengths` positions of each row."""
    if is_sigmoid:
        return _run_sigmoid(layer, inputs, state[0], lengths)
    time = inputs.shape[1]
    whole = bool((lengths == time).all())
    # A row without a position still runs over one, and keeps its state.
    passed = (
        inputs
        if whole
        else pack_padded_sequence(
            inputs, lengths.clamp(min=1).cpu(), batch_first=True, enforce_sorted=False
        )
    )
    before = tuple(tensor[None].contiguous() for tensor in state)
    outputs, after = layer(passed, before if len(before) == 2 else before[0])
    if not whole:
        outputs, _ = pad_packed_sequence(outputs, batch_first=True, total_length=time)
    after = after if isinstance(after, tuple) else (after,)
    none = (lengths == 0).to(inputs.device)[:, None]
    return outputs, [torch.where(none, old, new[0]) for old, new in zip(state, after, strict=True)]


def _run_sigmoid(
    layer: nn.RNNBase, inputs: Tensor, h: Tensor, lengths: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """h_t = sigmoid(W_ih x_t + W_hh h_{t-1} + b), for which PyTorch has no kernel."""
    bias = layer.bias_ih_l0 + layer.bias_hh_l0
    sums = F.linear(inputs, layer.weight_ih_l0, bias)
    outputs = []
    for position, summed in enumerate(sums.unbind(1)):
        now = torch.sigmoid(summed + F.linear(h, layer.weight_hh_l0))
        h = torch.where((position < lengths).to(h.device)[:, None], now, h)
        outputs.append(h)
    return torch.stack(outputs, dim=1), [h]


def _returned(config: LmkitConfig, return_dict: bool | None, result: Any) -> Any:
    if return_dict is None:
        return_dict = getattr(config, "return_dict", True)
    return result if return_dict else result.to_tuple()


class LmkitForCausalLM(LmkitPreTrainedModel, GenerationMixin):
    """A language model: the logits of the token after each position."""

    _tied_weights_keys = {"lm_head.weight": "model.embedding.weight"}  # noqa: RUF012

    def __init__(self, config: LmkitConfig) -> None:
        super().__init__(config)
        self.model = LmkitModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=config.output_bias)
        self.post_init()

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False

    def get_input_embeddings(self) -> nn.Embedding:
        return self.model.embedding

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.model.embedding = value

    def get_output_embeddings(self) -> nn.Linear:
        return self.lm_head

    def set_output_embeddings(self, value: nn.Linear) -> None:
        self.lm_head = value

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        state: States | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        past_key_values: States | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> LmkitCausalLMOutput | tuple[Any, ...]:
        """labels: (batch, time), the ids themselves, -100 where none counts: position t predicts
        label t + 1. logits_to_keep: so many of the last positions; 0 is all."""
        output = self.model(
            input_ids,
            attention_mask,
            past_key_values if state is None else state,
            inputs_embeds,
            use_cache=use_cache,
            output_hidden_states=output_hidden_states,
            return_dict=True,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(output.last_hidden_state[:, kept])
        loss = None
        if labels is not None:
            wanted = labels[:, 1:].to(logits.device)
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), wanted.flatten())
        result = LmkitCausalLMOutput(
            loss=loss, logits=logits, state=output.state, hidden_states=output.hidden_states
        )
        return _returned(self.config, return_dict, result)

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        state = kwargs.get(CACHE)
        return {
            "input_ids": input_ids if state is None else input_ids[:, -1:],
            "attention_mask": attention_mask,
            "state": state,
            "use_cache": kwargs.get("use_cache"),
            "logits_to_keep": 1,
        }

    def _update_model_kwargs_for_generation(
        self, outputs: Any, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> dict[str, Any]:
        updated = super()._update_model_kwargs_for_generation(
            outputs, model_kwargs, *args, **kwargs
        )
        for name in ("state", "past_key_values"):
            updated.pop(name, None)
        if outputs.state is not None:
            updated[CACHE] = outputs.state
        return updated

    def _reorder_cache(self, state: States, beam_idx: Tensor) -> States:
        return tuple(tensor.index_select(0, beam_idx.to(tensor.device)) for tensor in state)
