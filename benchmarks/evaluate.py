"""Evaluation speed: lmkit's, as `lmkit evaluate` computes it, against the plain loop.

    python benchmarks/evaluate.py path=DIR [shape=200_tied] [precision=32-true] [rounds=5]
        [windows=8]

Fresh weights, the same for all, on windows of the validation split. The plain loop reads windows
of bptt 35 in 10 lanes, as the public example does, and in 64, about as many tokens a turn as
lmkit in `windows` of its own. Ratios are to the first row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice

from baseline import Baseline, read
from measure import Rates, console, print_header, settings
from turns import Settings, start

from lmkit.assembly import build_model
from lmkit.inference import TrainedModel
from lmkit.inference.trained import POSITIONS
from lmkit.windows.lanes import Protocol

LANES, EXAMPLE_LANES, BPTT = 64, 10, 35


@dataclass
class EvaluateSettings(Settings):
    rounds: int = 5
    windows: int = 8


def main() -> None:
    given = settings(EvaluateSettings)
    print_header()
    config, data = start(given)
    store, tokenizer = data.prepared.stores["valid"], data.tokenizer
    model, head = build_model(config, tokenizer.vocabulary_size)
    trained = TrainedModel(model, head, tokenizer, precision=config["trainer"]["precision"])
    baseline = Baseline(tokenizer.vocabulary_size, config)
    baseline.model.take_weights(model, head)

    def plain(lanes: int) -> Callable[[], int]:
        loader = data.loader("valid", protocol="stream", num_lanes=lanes, bptt=BPTT)
        batches = read(islice(loader, given.windows * POSITIONS // (lanes * BPTT)))

        def run() -> int:
            baseline.evaluate(batches)
            return sum(batch.num_targets for batch in batches)

        return run

    def lmkit(protocol: Protocol) -> Callable[[], int]:
        def run() -> int:
            sums = trained.nll_sums(trained.loader(store, protocol, LANES))
            *_, (_, num_tokens) = islice(sums, given.windows)
            return num_tokens

        return run

    rates = Rates(f"plain PyTorch, {EXAMPLE_LANES} lanes")
    sides = {
        rates.baseline: plain(EXAMPLE_LANES),
        f"plain PyTorch, {LANES} lanes": plain(LANES),
        f"lmkit, stream, {LANES} lanes": lmkit("stream"),
        f"lmkit, document, {LANES} lanes": lmkit("document"),
    }
    rates.turn_about(sides, given.rounds)
    console.print(rates.table(f"evaluating {given.shape}, {config['trainer']['precision']}"))


if __name__ == "__main__":
    main()
