"""The first updates of every recipe are the stored ones, so a release that breaks one is seen."""

from pathlib import Path

import pytest
import recipe_curves

from lmkit.recipes import names

CURVES = recipe_curves.stored()
QUICK = ("pytorch_examples_200_tied", "zaremba_small")  # of seconds


def test_every_recipe_has_its_curve():
    assert sorted(CURVES) == names()


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow]) for name in names()],
)
def test_the_first_updates(name: str, tmp_path: Path) -> None:
    """If it was changed on purpose: python tests/support/recipe_curves.py NAME"""
    found, kept = recipe_curves.curve(name, tmp_path), CURVES[name]
    assert len(found) == recipe_curves.updates(name) >= len(kept)
    assert found[: len(kept)] == pytest.approx(kept, rel=recipe_curves.TOLERANCE)


@pytest.mark.parametrize("change", ["model.dropout=0.21", "optimizer.lr=20.5"])
def test_a_small_change_of_a_recipe_is_seen(change: str, tmp_path: Path) -> None:
    stored = CURVES["pytorch_examples_200_tied"]
    found = recipe_curves.curve("pytorch_examples_200_tied", tmp_path, change)
    assert len(found) == len(stored)
    assert found != pytest.approx(stored, rel=recipe_curves.TOLERANCE)
