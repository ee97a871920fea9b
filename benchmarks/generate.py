"""Generation speed: `lmkit generate` against the plain loop of pytorch/examples.

    python benchmarks/generate.py path=DIR [shape=200_tied] [precision=32-true] [rounds=5]
        [tokens=50] [texts=64]

Fresh weights, the same for all; one text, and `texts` at once, each of so many tokens, from
nothing to strings. The plain loop draws with `torch.multinomial` from the exponentials of the
logits, all of its texts from one generator.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from baseline import Baseline
from measure import Rates, console, default_allocator, print_header, settings
from turns import LMKIT, PLAIN, Settings, start

from lmkit.assembly import build_model
from lmkit.inference import TrainedModel


@dataclass
class GenerateSettings(Settings):
    rounds: int = 5
    tokens: int = 50
    texts: int = 64


def main() -> None:
    given = settings(GenerateSettings)
    print_header()
    config, data = start(given)
    tokenizer = data.tokenizer
    model, head = build_model(config, tokenizer.vocabulary_size)
    trained = TrainedModel(model, head, tokenizer, precision=config["trainer"]["precision"])
    baseline = Baseline(tokenizer.vocabulary_size, config, given.precision == "bf16-mixed")
    baseline.model.take_weights(model, head)
    baseline.model.eval()

    def plain(num_texts: int) -> Callable[[], int]:
        @torch.no_grad()
        def run() -> int:
            tokens, state, chosen = torch.full((1, num_texts), tokenizer.eos_id), None, []
            with default_allocator(), baseline.precision():
                for _ in range(given.tokens):
                    log_prob, state = baseline.model(tokens, state)
                    tokens = torch.multinomial(log_prob.exp(), 1).T  # (1, texts)
                    chosen.append(tokens[0])
            rows = torch.stack(chosen, dim=1).tolist()  # (texts, tokens)
            texts = ["".join(tokenizer.pieces(ids)) for ids in rows]
            return len(texts) * given.tokens

        return run

    def lmkit(num_texts: int) -> Callable[[], int]:
        def run() -> int:
            texts = trained.generate(num_tokens=given.tokens, num_samples=num_texts)
            return len(texts) * given.tokens  # with words, `<eos>` ends no text

        return run

    for num_texts in (1, given.texts):
        rates = Rates(PLAIN)
        rates.turn_about({PLAIN: plain(num_texts), LMKIT: lmkit(num_texts)}, given.rounds)
        title = f"generating with {given.shape}, {given.precision}, texts at once: {num_texts}"
        console.print(rates.table(title))


if __name__ == "__main__":
    main()
