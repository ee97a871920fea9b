"""The first updates of the recipes on a generated text, and the stored curves of their losses.

    python tests/support/recipe_curves.py [NAME ...]

writes the curves of these recipes, or of all, anew into tests/fixtures/recipes.json, which is to be
done when a recipe has changed on purpose. Each is computed on PyTorch's operators and on the
compiled kernels, which round in another way, and is stored as far as the two agree: at high rates a
training amplifies a rounding error, the later the more.
"""

import json
import random
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from lmkit.assembly import make_data
from lmkit.config.check import check
from lmkit.config.compose import compose
from lmkit.recipes import names
from lmkit.run import Run
from lmkit.training.fit import work
from lmkit.training.limits import in_windows

CURVES = Path(__file__).parents[1] / "fixtures" / "recipes.json"
# The models are as large as the recipes say, the lanes are few.
FEW_LANES = ["data.batch_size=2", "data.eval_batch_size=2"]
UPDATES = 200
# Of large models, which take longer and whose rounding errors grow sooner.
LARGE = {
    "awd_lstm_enwik8": 8,
    "awd_lstm_ptb": 50,
    "awd_lstm_wikitext2": 50,
    "awd_qrnn_ptb": 50,
    "awd_qrnn_wikitext103": 8,
    "awd_qrnn_wikitext2": 50,
    "melis_24m_wikitext2": 50,
    "mogrifier_35m_wikitext2": 50,
    "mos_ptb": 50,
    "pytorch_examples_1500_tied": 50,
    "pytorch_examples_650": 50,
    "pytorch_examples_650_tied": 50,
    "zaremba_large": 50,
    "zaremba_medium": 50,
}
# Of a rounding error, which grows in these updates; a wrong dropout, rate or clip is far outside.
TOLERANCE = 1e-3


def write_texts(directory: Path) -> dict[str, Path]:
    """A generated text in the form of each corpus, by the name of its source."""
    draw = random.Random(0)
    words = [f"w{number}" for number in range(200)]
    odds = [1 / (rank + 2) for rank in range(200)]

    def sentences(number: int) -> str:
        drawn = (" ".join(draw.choices(words, odds, k=draw.randint(4, 30))) for _ in range(number))
        return "".join(f" {sentence} \n" for sentence in drawn)

    texts = {split: sentences(number) for split, number in (("train", 1100), ("valid", 40))}
    texts["test"] = sentences(40)
    for split, text in texts.items():
        for name, content in (
            (f"ptb/ptb.{split}.txt", text),
            (f"wikitext/{split}.txt", f" = A = \n{text}"),
        ):
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            (directory / name).write_text(content)
    (directory / "enwik8").write_text("".join(texts.values()))
    return {
        "PennTreebank": directory / "ptb",
        "WikiText": directory / "wikitext",
        "Enwik8": directory / "enwik8",
        "TinyShakespeare": directory / "enwik8",
    }


def updates(name: str) -> int:
    """How many of a recipe are computed, over which its schedule reaches."""
    return LARGE.get(name, UPDATES)


def curve(name: str, directory: Path, *changes: str) -> list[float]:
    """The loss of each of a recipe's first updates, in nats a token, with some keys changed."""
    texts = write_texts(directory / "texts")
    recipe = compose([f"experiment={name}"]).config
    source = recipe["data"]["_target_"].rpartition(".")[2]
    cut = texts[source].is_file()
    small = ["data.valid_bytes=4000", "data.test_bytes=4000"] if cut else []
    if recipe["head"].get("cutoffs"):
        small.append("head.cutoffs=[20,60,120]")  # of the text's 204 words
    argv = [
        *(f"experiment={name}", f"data.path={texts[source]}", f"outputs={directory}", *small),
        *FEW_LANES,
        *(f"trainer.max_steps={updates(name)}", "trainer.log_every_n_steps=1"),
        *("trainer.precision=32-true", "trainer.limit_val_batches=1", "kernels=torch"),
        *("trainer.limit_test_batches=0", "trainer.accelerator=cpu", "callbacks.checkpoint=null"),
        *("callbacks.samples=null", "callbacks.watchdog=null", *changes),
    ]
    config, _ = check(compose(argv))
    run = Run.named(config["outputs"], config["name"], "first")
    run.start(config)
    data = make_data(config)
    in_windows(config["trainer"], data)
    work(run, config, None, data)
    run.release()
    lines = (run.path / "metrics.jsonl").read_text().splitlines()
    return [row["train/nll"] for row in map(json.loads, lines) if "train/nll" in row]


def stored() -> dict[str, list[float]]:
    curves: dict[str, list[float]] = json.loads(CURVES.read_text()) if CURVES.exists() else {}
    return curves


def alike(curves: Sequence[Sequence[float]]) -> int:
    """The number of updates up to the first whose losses differ by a hundredth of the tolerance."""
    for number, losses in enumerate(zip(*curves, strict=True)):
        if max(losses) - min(losses) > TOLERANCE / 100 * min(losses):
            return number
    return len(curves[0])


def main(wanted: list[str]) -> None:
    for name in wanted or names():
        found = []
        for kernels in ("torch", "compiled"):
            with tempfile.TemporaryDirectory() as directory:
                found.append(curve(name, Path(directory), f"kernels={kernels}"))
        kept = [round(value, 6) for value in found[0][: alike(found)]]
        print(f"{name}: {len(kept)} of {len(found[0])} updates", kept)
        curves = {**stored(), name: kept}
        ordered = {each: curves[each] for each in names() if each in curves}
        CURVES.write_text(written(ordered))


def written(curves: dict[str, list[float]]) -> str:
    """The curves as JSON, a line each."""
    lines = (f" {json.dumps(name)}: {json.dumps(curve)}" for name, curve in curves.items())
    return "{\n" + ",\n".join(lines) + "\n}\n"


if __name__ == "__main__":
    main(sys.argv[1:])
