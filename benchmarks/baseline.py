"""The baseline: a word language model in a plain PyTorch loop, as pytorch/examples trains one.

`nn.Embedding`, `nn.LSTM`, `nn.Linear`, log-softmax and negative log-likelihood, clipping by
norm, plain SGD by hand; time first and everything at PyTorch's defaults. It starts from the
weights of an lmkit model and reads lmkit's windows, made beforehand and so free of charge.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from measure import default_allocator
from torch import Tensor, nn

from lmkit.windows import Window

LSTMState = list[tuple[Tensor, Tensor]]  # of each module


class Batch(NamedTuple):
    """A window as the plain loop reads it: tokens (time, batch), targets (time * batch,), of
    which those that do not count are -100, the default `ignore_index`."""

    tokens: Tensor
    targets: Tensor
    num_targets: int


def read(windows: Iterable[Window]) -> list[Batch]:
    """The windows of a `stream` loader."""
    return [
        Batch(
            window.tokens.T.contiguous(),
            window.targets.masked_fill(~window.mask, -100).T.flatten(),
            window.num_targets,
        )
        for window in windows
    ]


class WordModel(nn.Module):
    """The model of lmkit's config group `model`, of the same names and sizes."""

    def __init__(self, vocabulary_size: int, config: Mapping[str, Any]) -> None:
        super().__init__()
        size = config["hidden_size"]
        self.dropout = nn.Dropout(config["dropout"])
        self.encoder = nn.Embedding(vocabulary_size, config["embedding_size"])
        sizes = [config["embedding_size"], *[size] * config["num_layers"]]
        if config["tie_weights"]:
            sizes[-1] = config["embedding_size"]
        # One module where all layers are alike, one a layer where not, as awd-lstm-lm has them.
        alike = len(set(sizes[1:])) == 1
        one = (sizes[0], sizes[1], len(sizes) - 1)
        layers = [one] if alike else [(*pair, 1) for pair in pairwise(sizes)]
        dropout = config["dropout"]
        self.lstms = nn.ModuleList(
            nn.LSTM(*layer, dropout=dropout if alike else 0) for layer in layers
        )
        self.decoder = nn.Linear(sizes[-1], vocabulary_size)
        if config["tie_weights"]:
            self.decoder.weight = self.encoder.weight
        nn.init.uniform_(self.encoder.weight, -0.1, 0.1)
        nn.init.uniform_(self.decoder.weight, -0.1, 0.1)
        nn.init.zeros_(self.decoder.bias)

    def forward(self, tokens: Tensor, state: LSTMState | None) -> tuple[Tensor, LSTMState]:
        """tokens (time, batch) -> log p (time * batch, vocabulary) and the next state."""
        hidden = self.dropout(self.encoder(tokens))
        states = []
        for index, lstm in enumerate(self.lstms):
            hidden, new = lstm(hidden, state[index] if state else None)
            hidden = self.dropout(hidden)
            states.append(new)
        logits = self.decoder(hidden)
        return F.log_softmax(logits.flatten(0, 1), dim=-1), states

    @torch.no_grad()
    def take_weights(self, model: nn.Module, head: nn.Module) -> None:
        """Start from where an lmkit model of the same shape stands."""
        self.encoder.weight.copy_(model.embedding.weight)
        self.decoder.weight.copy_(head.weight)
        self.decoder.bias.copy_(head.bias)
        alike = len(self.lstms) == 1
        for index, layer in enumerate(model.layers):
            for name, parameter in layer.named_parameters():
                lstm, place = (self.lstms[0], index) if alike else (self.lstms[index], 0)
                getattr(lstm, f"{name}_l{place}").copy_(parameter)


class Baseline:
    """The plain loop at the rate and clipping of an lmkit config; goes on between calls.

    In fp32 throughout, PyTorch's default, or with forward and loss under bf16 autocast.
    """

    def __init__(self, vocabulary_size: int, config: Mapping[str, Any], bf16: bool = False) -> None:
        self.bf16 = bf16
        self.device: str = config["trainer"]["accelerator"]
        self.model = WordModel(vocabulary_size, config["model"]).to(self.device)
        self.lr: float = config["optimizer"]["lr"]
        self.clip: float = config["trainer"]["gradient_clip_val"]
        self.state: LSTMState | None = None
        self.losses: list[float] = []

    def precision(self) -> torch.autocast:
        return torch.autocast(self.device, torch.bfloat16, enabled=self.bf16)

    def take_weights(self, model: nn.Module, head: nn.Module) -> None:
        self.model.take_weights(model, head)

    @default_allocator()
    def train(self, batches: Iterable[Batch]) -> None:
        self.model.train()
        for batch in batches:
            self.model.zero_grad()
            if self.state is not None:
                self.state = [(h.detach(), c.detach()) for h, c in self.state]
            with self.precision():
                log_prob, self.state = self.model(batch.tokens.to(self.device), self.state)
                loss = F.nll_loss(log_prob, batch.targets.to(self.device))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
            for parameter in self.model.parameters():
                parameter.data.add_(parameter.grad, alpha=-self.lr)
            self.losses.append(loss.item())

    @default_allocator()
    @torch.no_grad()
    def evaluate(self, batches: Iterable[Batch]) -> float:
        """Mean nll per token of a split, in nats."""
        self.model.eval()
        nll_sum, num_tokens, state = 0.0, 0, None
        for batch in batches:
            rows = batch.tokens.shape[1]
            if state is not None:  # lanes that have ended are the last ones
                state = [(h[:, :rows].contiguous(), c[:, :rows].contiguous()) for h, c in state]
            with self.precision():
                log_prob, state = self.model(batch.tokens.to(self.device), state)
                nll = F.nll_loss(log_prob, batch.targets.to(self.device))
                nll_sum += batch.num_targets * nll.item()
            num_tokens += batch.num_targets
        return nll_sum / num_tokens if num_tokens else math.nan
