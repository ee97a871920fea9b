"""What a training reports is exact, and what `lmkit evaluate` finds in the same checkpoint."""

import json
import math

import numpy as np
import pytest
from compiled import needs_kernels
from fitted import Place

from lmkit.commands.evaluate import evaluate
from lmkit.run import Run

FIGURES = ("nll", "perplexity", "bits_per_byte")


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Place:
    return Place(tmp_path_factory.mktemp("place"))


@pytest.mark.parametrize(
    "arguments",
    [
        ("data.eval_bptt=13", "data.eval_batch_size=3"),
        ("data.protocol=stream", "trainer.precision=bf16-mixed"),
        ("data.protocol=sentence", "trainer.val_check_interval=7", "trainer.max_steps=16"),
        ("model=gru", "model.num_layers=2", "model.hidden_size=8", "model.embedding_size=8"),
        pytest.param(("kernels=compiled", "data.protocol=stream"), marks=needs_kernels),
    ],
)
def test_evaluate_finds_the_figures_of_the_training(place, arguments):
    """To the last digit: `==`, not nearly."""
    fitted = place.fit(*arguments)
    run = Run(fitted.path)
    (test,) = evaluate(run, run.config())["results"]
    (best,) = evaluate(run, run.config(), split="valid")["results"]
    assert [fitted.summary[f"test/{key}"] for key in FIGURES] == [test[key] for key in FIGURES]
    assert fitted.summary["best/val/nll"] == best["nll"]
    assert fitted.summary["best/val/perplexity"] == best["perplexity"]
    (lowest,) = (row for row in fitted.rows if row.get("val/nll") == best["nll"])
    assert lowest["step"] == fitted.summary["best/step"]
    assert [lowest[f"val/{key}"] for key in FIGURES] == [best[key] for key in FIGURES]


def test_a_text_of_ones_own_is_not_cut_into_the_lanes_of_a_stream(place):
    run = Run(place.fit("data.protocol=stream", "trainer.precision=bf16-mixed").path)
    (given,) = evaluate(run, run.config(), text="the cat sat on the mat")["results"]
    (split,) = evaluate(run, run.config())["results"]
    assert (given["num_lanes"], split["num_lanes"]) == (1, 4)


def test_rows_and_summary_are_float64(place):
    fitted = place.fit()
    for row in (*fitted.rows, fitted.summary):
        for stage in ("train", "val", "test"):
            if f"{stage}/nll" not in row:
                continue
            nll, perplexity = row[f"{stage}/nll"], row[f"{stage}/perplexity"]
            assert abs(math.exp(nll) / perplexity - 1) < 1e-12
            if stage != "train":
                assert float(np.float32(nll)) != nll
                data = json.loads((fitted.path / "data.json").read_text())["splits"]
                split = data["valid" if stage == "val" else "test"]
                bits = nll * split["num_tokens"] / split["num_bytes"] / math.log(2)
                assert row[f"{stage}/bits_per_byte"] == pytest.approx(bits, rel=1e-14)
    newest = [row for row in fitted.rows if "val/nll" in row][-1]
    assert fitted.summary["val/nll"] == newest["val/nll"]
    assert fitted.summary["test/nll"] == fitted.rows[-1]["test/nll"]
