"""The temperature against the softmax of divided logits, and its choice."""

import numpy as np
import pytest
import torch
from in_memory import Text as Tokens
from trained_run import TEST, make_run

from lmkit.inference import Evaluation, Methods, Temperature, Text, TrainedModel, tuned
from lmkit.inference.temperature import read_at_temperatures


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    run = make_run(tmp_path_factory.mktemp("outputs"))
    return TrainedModel.load(run, run.config())


def test_it_divides_the_logits(trained):
    text = Tokens([20])
    ids = torch.tensor([trained.tokenizer.eos_id, *text.tokens.tolist()])[None]
    with torch.no_grad():
        resets = torch.zeros(1, 20, dtype=torch.bool)
        output = trained.model(ids[:, :-1], resets, trained.model.initial_state(1))
        logits = (output.hidden @ trained.head.weight.T + trained.head.bias).double()
    values = [0.7, 1.0, 1.3]
    found = read_at_temperatures(trained, text, "stream", 1, values)
    for value, nll in zip(values, found, strict=True):
        expected = -(logits / value).log_softmax(-1).gather(2, ids[:, 1:, None])[0, :, 0]
        np.testing.assert_allclose(nll, expected.numpy(), atol=1e-5)


@pytest.mark.parametrize("protocol", ["stream", "document"])
def test_one_is_the_plain_figure(trained, protocol):
    text = Text.of(TEST, trained.tokenizer)
    evaluation = Evaluation(trained, protocol)
    (row,) = evaluation.measure(text, Methods(temperature=Temperature(1.0)))
    assert row["method"] == "temperature"
    assert row["settings"] == {"value": 1.0}
    (plain,) = evaluation.read_with_cache(text, 1, [])
    assert row["nll"] == pytest.approx(float(plain.mean(dtype=np.float64)), abs=1e-6)


@pytest.mark.parametrize("scale", [0.5, 1.0, 2.5])
def test_the_one_that_is_chosen_is_nearly_the_best(trained, scale):
    """scale: of the logits, which shifts the best temperature by as much."""
    text = Text.of(TEST, trained.tokenizer)
    evaluation = Evaluation(trained, "stream")
    with torch.no_grad():
        trained.head.weight.mul_(scale), trained.head.bias.mul_(scale)
        methods, (row,) = tuned(evaluation, text, Methods(temperature=Temperature(1.0)))
        grid = [1 / inverse for inverse in np.linspace(0.6, 1.2, 61)]
        sums = evaluation.read_at_temperatures(text, grid).mean(axis=1, dtype=np.float64)
        trained.head.weight.div_(scale), trained.head.bias.div_(scale)
    assert methods == Methods(temperature=Temperature(row["settings"]["value"]))
    assert row["nll"] <= sums.min() + 1e-4
