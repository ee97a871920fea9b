"""The facts of a recipe: the published result that an experiment is held to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from lmkit.ranges import NonNegative, Positive, Size

Metric = Literal["perplexity", "bits_per_character"]


@dataclass
class Recipe:
    """What a published result says of itself; nothing of it changes a training.

    source: the paper or page, and the table, that has the numbers.
    text: the published text, and what data.path is to name.
    cost: what the training takes, or took those who published it.
    metric: of all numbers; bits_per_character: nll of a token in bits.
    valid, test: the published numbers, in the paper's own protocol; null: there is none.
    tolerance: the most that ours may be above these.
    test_lanes: of the test, if not data.eval_batch_size as in the validation.
    tokens: of train, valid and test of the published text, to know it by.
    vocabulary_size: of the published text, from which the size of the model is estimated.
    further: numbers of valid and test by a name, such as finetuned, cache, dynamic_evaluation.
    """

    source: str
    text: str
    cost: str
    metric: Metric = "perplexity"
    valid: Positive | None = None
    test: Positive | None = None
    tolerance: NonNegative = 1.0
    test_lanes: Size | None = None
    tokens: dict[str, Size] | None = None
    vocabulary_size: Size | None = None
    further: dict[str, tuple[Positive | None, Positive | None]] | None = None

    @staticmethod
    def mistakes(config: Mapping[str, Any], at: str) -> list[str]:
        """Mistakes in values that are valid one by one."""
        found = [
            f"{at}.{key} is empty: say it in a few words"
            for key in ("source", "text", "cost")
            if not config[key].strip()
        ]
        if config["valid"] is None and config["test"] is None:
            found.append(f"{at}: set {at}.valid or {at}.test, the published number, or both")
        splits = ("train", "valid", "test")
        if others := [split for split in config["tokens"] or () if split not in splits]:
            found.append(f"{at}.tokens.{others[0]}: expected train, valid and test")
        return found
