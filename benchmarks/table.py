"""Surprisal tables against a plain loop over sentences, and against the machine's own limit.

    python benchmarks/table.py [sentences] [rounds]

A word LSTM of 2x200 with a vocabulary of 33,278, random weights; sentences of 5 to 35 words. Turn
about in one process: `TrainedModel.table`; the same measures by a plain loop, a sentence at a time
through nn.LSTM, nn.Linear and log_softmax; and the product of hidden vectors with the output matrix
alone, which every table must compute, with lmkit's matrix product.
"""

from __future__ import annotations

import math
import random
import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import nn

import lmkit  # noqa: F401 - before torch, for its setting of OpenMP
from lmkit.head import FullSoftmax
from lmkit.inference import TrainedModel
from lmkit.kernels.matmul import fast_matmul
from lmkit.model import LSTM
from lmkit.tokenizer import Word

SIZE, VOCABULARY = 200, 33_278


class Plain:
    """The loop that one would write: a sentence at a time, its words one by one into a list."""

    def __init__(self, trained: TrainedModel) -> None:
        self.embedding, self.head = trained.model.embedding, trained.head
        self.lstm = nn.LSTM(SIZE, SIZE, 2, batch_first=True)
        for index, layer in enumerate(trained.model.layers):
            for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
                getattr(self.lstm, f"{name}_l{index}").data.copy_(getattr(layer, name))

    @torch.no_grad()
    def table(self, tokenizer: Word, sentences: list[str]) -> list[dict[str, object]]:
        rows: list[dict[str, object]] = []
        for sentence in sentences:
            words = sentence.split()
            ids = tokenizer.encode_text(sentence)
            inputs = torch.tensor([[tokenizer.eos_id, *ids[:-1]]])
            hidden, _ = self.lstm(self.embedding(inputs))
            logits = nn.functional.linear(hidden[0], self.head.weight, self.head.bias)
            log_prob = logits.log_softmax(-1)
            entropy = -(log_prob.exp() * log_prob).sum(-1) / math.log(2)
            for i, (word, token) in enumerate(zip(words, ids, strict=True)):
                rank = 1 + int((log_prob[i] > log_prob[i, token]).sum())
                bits = -float(log_prob[i, token]) / math.log(2)
                rows.append(
                    {"word": word, "surprisal": bits, "entropy": float(entropy[i]), "rank": rank}
                )
        return rows


@torch.inference_mode()
def limit(weight: torch.Tensor, num_positions: int) -> None:
    hidden = torch.randn(378, SIZE)
    for _ in range(-(-num_positions // 378)):
        with fast_matmul():
            nn.functional.linear(hidden, weight)


def main() -> None:
    num_sentences, rounds = (int(word) for word in [*sys.argv[1:], "1000", "5"][:2])
    draw = random.Random(0)
    vocabulary = ["<eos>", "<unk>", *(f"w{i}" for i in range(VOCABULARY - 2))]
    items = [
        {"sentence": " ".join(draw.choices(vocabulary[2:], k=draw.randint(5, 35)))}
        for _ in range(num_sentences)
    ]
    torch.manual_seed(0)
    model = LSTM(VOCABULARY, embedding_size=SIZE, hidden_size=SIZE, num_layers=2)
    trained = TrainedModel(
        model, FullSoftmax(SIZE, VOCABULARY, model.embedding), Word.of(vocabulary)
    )
    plain = Plain(trained)
    sentences = [item["sentence"] for item in items]
    num_tokens = sum(len(sentence.split()) + 1 for sentence in sentences)
    ways: dict[str, Callable[[], object]] = {
        "lmkit": lambda: trained.table(items),
        "plain loop": lambda: plain.table(trained.tokenizer, sentences),
        "product alone": lambda: limit(trained.head.weight, num_tokens),
    }
    ours, theirs = ways["lmkit"](), ways["plain loop"]()
    for one, other in zip(ours, theirs, strict=True):  # type: ignore[call-overload]
        assert all(abs(one[key] - other[key]) < 1e-3 for key in ("surprisal", "entropy"))
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way, run in ways.items():
            began = time.perf_counter()
            run()
            seconds[way].append(time.perf_counter() - began)
    print(f"{num_sentences:,} sentences, {num_tokens:,} tokens, {torch.get_num_threads()} threads")
    for way, each in seconds.items():
        ratio = statistics.median(s / t for s, t in zip(each, seconds["lmkit"], strict=True))
        rate = num_sentences / statistics.median(each)
        print(f"{way:14} {rate:8,.0f} sentences/s  {ratio:6.2f} times lmkit's time")


if __name__ == "__main__":
    main()
