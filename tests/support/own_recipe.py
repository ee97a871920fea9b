"""A recipe of the tests' own, which is trained for real in a moment, and its text."""

import random
from pathlib import Path

WORDS = ["the", "a", "cat", "dog", "sat", "ran", "on", "under", "mat", "and", "then", "slept"]
TOKENS = {"train": 2910, "valid": 300, "test": 274}


def write_text(directory: Path) -> Path:
    """Sentences in the files of the Penn Treebank."""
    draw = random.Random(0)
    directory.mkdir(parents=True, exist_ok=True)
    for split, number in (("train", 360), ("valid", 36), ("test", 36)):
        lines = (" ".join(draw.choices(WORDS, k=draw.randint(3, 11))) for _ in range(number))
        (directory / f"ptb.{split}.txt").write_text("".join(f" {line} \n" for line in lines))
    return directory


def write_recipe(
    conf: Path,
    valid: float = 12.5,
    tolerance: float = 1.0,
    scheduler: str = "constant",
    metric: str = "perplexity",
) -> Path:
    """A folder of configs with the experiment `tiny`; returns the folder."""
    (conf / "experiment").mkdir(parents=True, exist_ok=True)
    (conf / "experiment" / "tiny.yaml").write_text(f"""# @package _global_
# A tiny recipe
defaults:
  - override /data: ptb
  - override /optimizer: sgd
  - override /scheduler: {scheduler}
  - _self_
name: tiny
data: {{protocol: stream, batch_size: 4, bptt: 16, eval_batch_size: 2}}
model: {{embedding_size: 4, hidden_size: 4, num_layers: 1}}
optimizer: {{lr: 1}}
trainer: {{max_epochs: 2, log_every_n_steps: 5}}
recipe:
  source: nobody 2026, table 0
  text: sentences that a test has drawn
  cost: a moment
  metric: {metric}
  valid: {valid}
  test: 12.5
  tolerance: {tolerance}
  test_lanes: 1
  tokens: {{train: {TOKENS["train"]}, valid: {TOKENS["valid"]}, test: {TOKENS["test"]}}}
  vocabulary_size: 14
  further: {{cache: [9.5, null], dynamic_evaluation: [null, 9.5]}}
""")
    return conf
