"""The estimate of a run: some of its own steps, and nothing left behind."""

import pytest

from lmkit.config.check import check
from lmkit.config.compose import compose
from lmkit.training.estimate import estimate


def test_an_estimate_is_of_the_config_that_is_given(text, monkeypatch, tmp_path):
    monkeypatch.setattr("lmkit.training.estimate.SECONDS", 0.1)
    monkeypatch.chdir(tmp_path)
    arguments = [
        "data=files",
        f"data.path={text}",
        "data.unit=paragraph",
        "tokenizer=characters",
        "model.hidden_size=32",
        "model.embedding_size=32",
        "scheduler=cosine",
        "trainer.accumulate_grad_batches=2",
        f"outputs={tmp_path / 'outputs'}",
    ]
    config, _ = check(compose(arguments))
    before = str(config)
    found = estimate(config)
    assert str(config) == before
    layer = 4 * 32 * (32 + 32 + 2)
    vocabulary_size = (found.num_parameters - 2 * layer) // 33  # tied, and a bias
    assert found.num_parameters == 2 * layer + 33 * vocabulary_size
    assert found.tokens > 0
    assert found.tokens_per_second > 100
    assert 2**26 < found.peak_memory_bytes < 2**33
    assert found.epoch_seconds * found.tokens_per_second == pytest.approx(found.tokens)
    assert [path.name for path in (tmp_path / "outputs").iterdir()] == [".cache"]


def test_an_epoch_without_windows_takes_no_time(text, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    data = ["data=files", f"data.path={text}", "data.unit=paragraph", "tokenizer=characters"]
    small = ["model.hidden_size=8", "model.embedding_size=8"]
    config, _ = check(compose([*data, *small, f"outputs={tmp_path / 'outputs'}"]))
    config["trainer"]["limit_train_batches"] = 0  # which the check refuses
    assert estimate(config, unless_short=True).epoch_seconds == 0
