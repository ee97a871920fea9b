"""Samples text from a language model, token after token, from the state alone.

A text begins as a document does, with the zero state and the input `<eos>`; the prompt follows.
Memory and cost of a token do not depend on how many tokens came before it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lmkit.errors import UserError
from lmkit.head import Head
from lmkit.model import LanguageModel, Reader
from lmkit.tokenizer import Tokenizer
from lmkit.tokenizer.base import DocumentTokenizer
from lmkit.windows.lanes import Protocol

PROMPT_POSITIONS = 1024


@dataclass(frozen=True)
class Sampling:
    """How to sample: `num_samples` texts of at most `num_tokens` after the prompt.

    temperature 0 chooses the likeliest token. top_k keeps the k likeliest tokens, top_p the fewest
    of those that have this share of their probability (Holtzman et al. 2020). stop: the text of a
    token before which a sample ends. Sample i with seed s is the same as the only sample with seed
    s + i, on any device. Raises UserError for values out of range.
    """

    num_tokens: int = 50
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    num_samples: int = 1
    seed: int = 1
    stop: str | None = None

    def __post_init__(self) -> None:
        wrong = [
            f"{key}={getattr(self, key)}: must be at least 1"
            for key in ("num_tokens", "num_samples", "top_k")
            if getattr(self, key) is not None and getattr(self, key) < 1
        ]
        if not 0 <= self.temperature < float("inf"):
            wrong.append(
                f"temperature={self.temperature}: must be a number from 0 (greedy) upwards"
            )
        if self.top_p is not None and not 0 < self.top_p <= 1:
            wrong.append(f"top_p={self.top_p}: must be above 0 and at most 1")
        if not 0 <= self.seed < 2**62:
            wrong.append(f"seed={self.seed}: must be from 0 to 2^62")
        if wrong:
            raise UserError("; ".join(wrong))


def sample_texts(
    model: LanguageModel,
    head: Head,
    tokenizer: Tokenizer,
    prompt: str,
    sampling: Sampling,
    protocol: Protocol,
) -> list[str]:
    """The text after the prompt in each sample.

    A sample also ends where its unit under `protocol` does: at the `<eos>` that closes a document,
    or under `sentence` at the end of the line. The token that ends it is not part of the text.
    """
    ends = _unit_ends(tokenizer, protocol)
    if protocol == "sentence":  # in training each line was encoded by itself
        prompt = prompt.rpartition("\n")[2]
    prompt_ids = tokenizer.encode_text(prompt)
    # Tokens up to the last end of a unit are left out: the reset makes the model forget them.
    begin = max((i + 1 for i, token in enumerate(prompt_ids) if token in ends), default=0)
    if sampling.stop is not None:
        ends.add(stop_token(tokenizer, sampling.stop))
    samples = sample_tokens(model, head, prompt_ids[begin:], sampling, tokenizer.eos_id, ends)
    surfaces = (tokenizer.pieces([*prompt_ids, *ids]) for ids in samples)
    return ["".join(each[len(prompt_ids) :]) for each in surfaces]


def sample_tokens(
    model: LanguageModel,
    head: Head,
    prompt: Sequence[int],
    sampling: Sampling,
    eos_id: int,
    ends: Collection[int] = (),
) -> list[list[int]]:
    """The tokens after the prompt in each sample, before the first of `ends`."""
    samples: list[list[int]] = [[] for _ in range(sampling.num_samples)]
    running = set(range(sampling.num_samples))
    was_training = model.training
    model.eval()
    try:
        # In fp32 on the CPU: for one token this costs less than converting weights.
        with torch.autocast("cpu", enabled=False):
            stream = _stream(model, head, [eos_id, *prompt], sampling)
            for _, tokens in zip(range(sampling.num_tokens), stream, strict=False):
                running -= {i for i in running if tokens[i] in ends}
                for i in running:
                    samples[i].append(tokens[i])
                if not running:
                    break
    finally:
        model.train(was_training)
    return samples


@torch.inference_mode()
def _stream(
    model: LanguageModel, head: Head, inputs: Sequence[int], sampling: Sampling
) -> Iterator[list[int]]:
    """Yields the next token of every sample, without end."""
    num_samples = sampling.num_samples
    # Own generators on the CPU: every device draws the same, and the global one is not used.
    generators = [torch.Generator().manual_seed(sampling.seed + i) for i in range(num_samples)]
    device = model.embedding.weight.device
    reader = Reader(model)
    for tokens in torch.tensor([inputs], device=device).split(PROMPT_POSITIONS, dim=1):
        output = reader.read(tokens, torch.zeros_like(tokens, dtype=torch.bool))
    hidden = output.hidden[:, -1:].repeat(num_samples, 1, 1)
    reader.repeat(num_samples)
    resets = torch.zeros(num_samples, 1, dtype=torch.bool, device=device)
    while True:
        chosen: list[Tensor] = []
        draws = [torch.rand((), dtype=torch.float64, generator=g) for g in generators]
        for log_prob in head.log_prob(hidden):  # (some of the samples, vocabulary)
            uniform, draws = torch.stack(draws[: len(log_prob)]), draws[len(log_prob) :]
            chosen.append(choose(log_prob.cpu(), uniform, sampling))
        tokens = torch.cat(chosen)
        yield tokens.tolist()
        hidden = reader.read(tokens[:, None].to(device), resets).hidden


def choose(log_prob: Tensor, uniform: Tensor, sampling: Sampling) -> Tensor:
    """log_prob (n, vocabulary) and float64 numbers in [0, 1) (n) -> ids (n): the tokens at which
    the cumulative distribution passes the numbers."""
    if sampling.temperature == 0:
        return log_prob.argmax(dim=1)
    ids = None
    if sampling.top_k is not None:
        log_prob, ids = log_prob.topk(min(sampling.top_k, log_prob.shape[1]))
    elif sampling.top_p is not None:
        log_prob, ids = log_prob.sort(descending=True, stable=True)
    likeliest = log_prob.amax(dim=1, keepdim=True)
    prob = ((log_prob - likeliest).double() / sampling.temperature).softmax(dim=1)
    if sampling.top_p is not None:
        before = prob.cumsum(dim=1) - prob
        prob = prob.masked_fill(before >= sampling.top_p, 0.0)
    cumulative = prob.cumsum(dim=1)
    column = torch.searchsorted(cumulative, uniform[:, None] * cumulative[:, -1:], right=True)
    column = column.clamp_max(prob.shape[1] - 1)  # (n, 1)
    return (column if ids is None else ids.gather(1, column))[:, 0]


def stop_token(tokenizer: Tokenizer, stop: str) -> int:
    """The id of the one token whose text is `stop`; every tokenizer has `<eos>`."""
    if stop == "<eos>":
        return tokenizer.eos_id
    ids = tokenizer.encode_text(stop)
    if len(ids) != 1:
        surfaces = " ".join(map(repr, tokenizer.pieces(ids)))
        raise UserError(
            f"stop={stop}: must be one token of the run's {tokenizer.name} tokenizer, found "
            f"{len(ids)} ({surfaces}); name one of them, or <eos>"
        )
    if ids[0] == tokenizer.unk_id and stop != "<unk>":
        raise UserError(f"stop={stop}: not in the run's vocabulary, so it could never come")
    return ids[0]


def _unit_ends(tokenizer: Tokenizer, protocol: Protocol) -> set[int]:
    """The tokens that end a unit of the protocol, after which training resets the model."""
    ends = {tokenizer.eos_id} if isinstance(tokenizer, DocumentTokenizer) else set()
    if protocol == "sentence":
        ids = range(tokenizer.vocabulary_size)
        ends |= {i for i in ids if "\n" in "".join(tokenizer.pieces([i]))}
    return ends
