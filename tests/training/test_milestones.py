"""Weights that are kept after so many tokens or words."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from trained_run import make_run

import lmkit
from lmkit import cli
from lmkit.corpus import Files
from lmkit.run.checkpoints import load_checkpoint
from lmkit.store import prepare
from lmkit.tokenizer import ByteLevelBPE, Bytes, Characters, Word
from lmkit.training.callbacks import Milestones
from lmkit.training.callbacks.milestones import num_words, short

TEXTS = [
    "the cat ran over the mat\n the dog  too",
    "a zebra saw\tthe dog run .",
    "the zebra",
    "12 mats\u2003lay there\n",
]


def test_the_milestones_of_babylm():
    words = Milestones(words="babylm").words
    assert len(words) == 9 + 9 + 10
    assert (words[0], words[9], words[18], words[-1]) == (10**6, 10**7, 10**8, 10**9)
    assert [short(n) for n in (*words[8:11], words[-1], 250_000, 1234)] == [
        *("9M", "10M", "20M", "1000M", "250K", "1234"),
    ]


@given(st.lists(st.integers(0, 40), max_size=30), st.floats(0.1, 1.5))
def test_each_milestone_is_reached_once_however_large_the_updates(steps, ratio):
    callback = Milestones(words=[10, 20, 1000], tokens=[7, 30])
    callback.words_per_token = ratio
    seen, names = 0, []
    for step in steps:
        names += callback._reached(seen, seen + step)
        seen += step
    expected = {f"tokens_{n}" for n in (7, 30) if n <= seen}
    expected |= {f"chck_{short(n)}" for n in (10, 20, 1000) if n <= seen * ratio}
    assert sorted(names) == sorted(expected)


@pytest.mark.parametrize("kind", [Word, Characters, Bytes, ByteLevelBPE])
def test_words_are_counted_in_pieces_as_in_the_text(tmp_path, monkeypatch, kind):
    monkeypatch.setattr("lmkit.training.callbacks.milestones.COUNTED", 3)
    (tmp_path / "text").mkdir()
    for i, text in enumerate(TEXTS):
        (tmp_path / "text" / f"{i}.txt").write_text(text)
    source = Files(str(tmp_path / "text"), valid_fraction=0, test_fraction=0)
    tokenizer = ByteLevelBPE(280) if kind is ByteLevelBPE else kind()
    prepared = prepare(source, tokenizer, tmp_path / "cache", progress=False)
    counted = num_words(prepared.stores["train"], prepared.tokenizer)
    assert counted == sum(len(text.split()) for text in TEXTS)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    outputs = tmp_path_factory.mktemp("milestones") / "outputs"
    make_run(outputs)  # for its corpus
    return outputs.parent


def train(run_id, *arguments):
    small = (
        *("train", "data=wikitext", "data.path=outputs/corpus", "trainer.accelerator=cpu"),
        *("data.batch_size=2", "data.bptt=4", "threads=1", "trainer.precision=32-true"),
        *("model.hidden_size=8", "model.embedding_size=8", "~callbacks.samples"),
        *("callbacks=[default,milestones]", f"run_id={run_id}", "name=kept", "model.dropout=0.3"),
    )
    assert cli.main([*small, *arguments]) == 0
    return Path("outputs", "kept", run_id, "checkpoints")


def weights(path):
    return load_checkpoint(path)["state_dict"]


def test_the_weights_are_those_after_the_update_that_reached_it(place, monkeypatch):
    """Updates have up to 8 of the 40 tokens of an epoch."""
    monkeypatch.chdir(place)
    milestones = ["callbacks.milestones.words=[20,30]", "callbacks.milestones.tokens=[30]"]
    whole = train("whole", *milestones, "trainer.max_steps=12")
    kept = sorted(path.name for path in whole.glob("*_*.ckpt"))
    assert kept == ["chck_20.ckpt", "chck_30.ckpt", "tokens_30.ckpt"]
    rows = [lmkit.run.checkpoints.read_manifest(whole / name)["step"] for name in kept]
    for name, step in zip(kept, rows, strict=True):
        alone = train(f"alone-{name}", *milestones, f"trainer.max_steps={step}")
        expected = weights(alone / "last.ckpt")
        found = weights(whole / name)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert len(set(rows)) > 1
    # A run that has been stopped on the way keeps the same ones.
    train("cut", *milestones, f"trainer.max_steps={rows[0]}")
    assert cli.main(["resume", "cut", "trainer.max_steps=12"]) == 0
    for name in kept:
        again = weights(place / "outputs" / "kept" / "cut" / "checkpoints" / name)
        assert all(torch.equal(again[key], value) for key, value in weights(whole / name).items())
    # It is a checkpoint like any other.
    assert cli.main(["evaluate", "kept/whole", "checkpoint=chck_20"]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["callbacks.milestones.words=babyl"], "expected babylm | a list of int | null"),
        (
            ["callbacks.milestones.words=[0,5]"],
            "callbacks.milestones.words=[0, 5]: must be at least 1",
        ),
        (["callbacks.milestones.words=null"], "give the numbers at which weights are kept"),
    ],
)
def test_mistakes(place, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(place)
    assert cli.main(["train", "callbacks=[default,milestones]", *arguments]) == 2
    assert message in capsys.readouterr().err
