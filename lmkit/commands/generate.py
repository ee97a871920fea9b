"""`lmkit generate`: text that a trained model writes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from rich.console import Console
from rich.text import Text

from lmkit.inference import TrainedModel
from lmkit.run import Run, no_checkpoint

CONTROL = {*range(0x20), *range(0x7F, 0xA0)} - {ord("\n"), ord("\t")}


def generate(
    run: Annotated[Run, no_checkpoint],
    config: Mapping[str, Any],
    *,
    prompt: str = "",
    num_tokens: int = 50,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    num_samples: int = 1,
    seed: int = 1,
    stop: str | None = None,
    checkpoint: str = "best",
) -> dict[str, Any]:
    """Go on from a prompt, or from the beginning of a document.

        lmkit generate latest
        lmkit generate latest prompt=The num_tokens=40 temperature=0.8 top_p=0.95

    prompt: what the text begins with. num_tokens: of each sample, at most.
    num_samples: texts to write.
    temperature: 0 always takes the likeliest token. top_k: only the k likeliest tokens.
    top_p: of those, only the fewest that hold this share of the probability.
    seed: sample i of seed s is the only sample of seed s + i.
    stop: the text of a token to end before; a sample also ends with its document.
    checkpoint: best, last or another of the run's.
    config: that of the run, of which kernels, threads, trainer.accelerator and trainer.precision
    are used
    """
    settings: dict[str, Any] = {
        "num_tokens": num_tokens,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "num_samples": num_samples,
        "seed": seed,
        "stop": stop,
    }
    trained = TrainedModel.load(run, config, checkpoint)
    texts = trained.generate(prompt, **settings)
    console = Console(soft_wrap=True)
    # What the model writes must not steer the terminal.
    plain = dict.fromkeys(CONTROL, "\N{REPLACEMENT CHARACTER}")
    for index, text in enumerate(texts):
        if num_samples > 1:
            console.rule(f"sample {index + 1}, seed {seed + index}")
        console.print(Text.assemble((prompt, "bold"), text[len(prompt) :].translate(plain)))
    return {
        "run": f"{run.name}/{run.id}",
        "checkpoint": trained.checkpoint.stem if trained.checkpoint else None,
        "prompt": prompt,
        **settings,
        "texts": texts,
    }
