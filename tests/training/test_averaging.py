"""Averages of the weights in trainings: what is evaluated, saved, and gone on with."""

import pytest
import torch
from fitted import Place, assert_same

from lmkit import cli
from lmkit.assembly import make_data
from lmkit.inference import TrainedModel
from lmkit.run import Run
from lmkit.run.checkpoints import load_checkpoint

EVERY = ("trainer.val_check_interval=6", "callbacks.checkpoint.every_n_train_steps=4")
KINDS = {
    "nt_asgd": ("averaging=nt_asgd", "averaging.interval=1", "optimizer.lr=25"),
    "ema": ("averaging=ema", "averaging.decay=0.9"),
    "swa": ("averaging=swa", "averaging.every=3"),
    "two_tailed": ("averaging=two_tailed", "optimizer.lr=4"),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return Place(tmp_path_factory.mktemp("averaging"))


def averaged(fitted, name="last"):
    return load_checkpoint(fitted.path / "checkpoints" / f"{name}.ckpt")["averaged"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("kill_at", [(7,), (12, 13), (5, 26)])
def test_a_killed_training_resumes_bit_for_bit(place, kind, kill_at):
    settings = (*EVERY, *KINDS[kind], "trainer.max_epochs=3")
    whole = place.fit(*settings)
    killed = place.train(*settings, kill_at=kill_at)
    assert_same(killed, whole)
    one, other = averaged(whole), averaged(killed)
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert one.keys() == whole.weights.keys()
    assert any(not torch.equal(one[name], whole.weights[name]) for name in one)


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_average_as_one(place, kind):
    """Up to the rounding of sums, which two processes take in another order, at rates at which it
    does not grow: so that a validation is worse, NT-ASGD has a penalty."""
    calm = ("optimizer.lr=1",)
    if kind == "nt_asgd":
        calm = ("optimizer.lr=4", "optimizer.weight_decay=0.02")
    settings = (*EVERY, *KINDS[kind], *calm, "trainer.max_epochs=3")
    one, two = place.fit(*settings), place.in_two_processes(*settings)
    assert two.of("val/nll") == pytest.approx(one.of("val/nll"), rel=1e-4)
    assert averaged(two).keys() == averaged(one).keys()
    for name, average in averaged(one).items():
        torch.testing.assert_close(averaged(two)[name], average, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", ["ema", "swa", "two_tailed"])
def test_training_goes_on_from_the_weights_themselves(place, kind):
    rate = [each for each in KINDS[kind] if each.startswith("optimizer")]
    plain = place.fit(*EVERY, *rate, "trainer.max_epochs=3")
    found = place.fit(*EVERY, *KINDS[kind], "trainer.max_epochs=3")
    assert found.of("train/nll") == plain.of("train/nll")
    assert found.of("val/nll") != plain.of("val/nll")
    assert all(torch.equal(found.weights[name], plain.weights[name]) for name in plain.weights)


def test_both_averages_are_validated_on_the_same_windows(place, monkeypatch):
    counts = []

    def mean(sums):
        nll_sum, num_tokens = sums.compute()
        counts.append(num_tokens)
        return nll_sum / num_tokens

    monkeypatch.setattr("lmkit.training.callbacks.averaging._mean", mean)
    fitted = place.train(*EVERY, *KINDS["two_tailed"], "trainer.limit_val_batches=1")
    assert len(counts) > len(fitted.of("val/nll"))  # some are of the other average
    assert len(set(counts)) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_validated_tested_and_loaded_is_the_average(place, kind):
    fitted = place.fit(*EVERY, *KINDS[kind], "trainer.max_epochs=3")
    run = Run(fitted.path)
    config = run.config()
    best = TrainedModel.load(run, config)
    raw = TrainedModel.load(run, config, "best:raw")
    checkpoint = load_checkpoint(fitted.path / "checkpoints" / "best.ckpt")
    expected = checkpoint.get("averaged", checkpoint["state_dict"])
    assert torch.equal(best.head.weight, expected["head.weight"])
    assert torch.equal(raw.head.weight, checkpoint["state_dict"]["head.weight"])
    store = make_data(config).prepared.stores
    for split, key in (("valid", "best/val/nll"), ("test", "test/nll")):
        loader = best.loader(store[split], "document", 4, 4 * 64)
        *_, (nll_sum, num_tokens) = best.nll_sums(loader)
        assert nll_sum / num_tokens == pytest.approx(fitted.summary[key], rel=1e-6)


def test_without_a_validation_the_last_average_is_tested(place):
    none = ("trainer.limit_val_batches=0", "callbacks.checkpoint.monitor=null")
    fitted = place.fit(*none, *KINDS["ema"])
    run = Run(fitted.path)
    last = TrainedModel.load(run, run.config(), "last")
    store = make_data(run.config()).prepared.stores["test"]
    *_, (nll_sum, num_tokens) = last.nll_sums(last.loader(store, "document", 4, 4 * 64))
    assert nll_sum / num_tokens == pytest.approx(fitted.summary["test/nll"], rel=1e-6)


def test_an_evaluation_says_that_the_weights_are_raw(place, capfd):
    fitted = place.fit(*EVERY, *KINDS["ema"])
    assert cli.main(["evaluate", str(fitted.path), "checkpoint=best:raw"]) == 0
    assert "(best:raw) on test" in capfd.readouterr().out
