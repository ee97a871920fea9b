"""A training that begins with the weights of another run."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from trained_run import make_run

import lmkit
from lmkit import cli
from lmkit.assembly import build_model
from lmkit.run.checkpoints import load_checkpoint
from lmkit.tokenizer import Bytes, Word, load_tokenizer
from lmkit.training.initial import begin

TEXT = """ = First = \n the cat ran over the mat . \n
 = Second = \n a zebra saw the dog run . \n\n the zebra lay there . \n"""
SMALL = (
    *("data=wikitext", "data.path=new", "trainer.accelerator=cpu"),
    *("data.batch_size=2", "data.eval_batch_size=2", "data.bptt=4", "threads=1"),
    *("trainer.precision=32-true", "~callbacks.samples", "~callbacks.watchdog"),
)


@pytest.fixture(scope="module")
def parent(tmp_path_factory):
    run = make_run(tmp_path_factory.mktemp("initial") / "outputs")
    new = run.path.parents[2] / "new"
    new.mkdir()
    for split in ("train", "valid", "test"):
        (new / f"{split}.txt").write_text(TEXT)
    return run


@pytest.fixture
def there(parent, monkeypatch):
    monkeypatch.chdir(parent.path.parents[2])
    return parent.path.parents[2]


def train(run_id, *arguments, code=0):
    given = ["init=lstm-word-document", "name=child", f"run_id={run_id}"]
    assert cli.main(["train", *SMALL, *given, *arguments]) == code
    return Path("outputs", "child", run_id)


def weights(run, checkpoint="last"):
    return load_checkpoint(run / "checkpoints" / f"{checkpoint}.ckpt")["state_dict"]


def config(parent, **changed):
    theirs = parent.config()
    return theirs | {"init": str(parent.path), "init_checkpoint": "best"} | changed


def test_it_has_the_weights_and_the_vocabulary_of_the_run(parent):
    tokenizer = load_tokenizer(parent.path)
    kept = config(parent, init_vocabulary="kept")
    model, head = build_model(kept, tokenizer.vocabulary_size)
    record = begin(kept, model, head, tokenizer)
    saved = weights(parent.path, "best")
    for name, value in {
        **model.state_dict(prefix="model."),
        **head.state_dict(prefix="head."),
    }.items():
        assert torch.equal(value, saved[name])
    manifest = json.loads((parent.path / "checkpoints" / "step-000000007.json").read_text())
    assert record == {
        "run": str(parent.path),
        "checkpoint": "best",
        "step": 7,
        "sha256": manifest["sha256"],
        "vocabulary": "kept",
        "shared_tokens": tokenizer.vocabulary_size,
    }


@pytest.mark.parametrize("tied", [True, False])
def test_a_new_vocabulary_keeps_the_rows_of_the_words_that_both_have(tmp_path, tied):
    parent = make_run(tmp_path / "outputs", "lstm" if tied else "gru")
    theirs, ours = load_tokenizer(parent.path), Word()
    ours.train([TEXT])
    new = config(parent, init_vocabulary="new")
    torch.manual_seed(3)
    fresh, _ = build_model(new, ours.vocabulary_size)
    torch.manual_seed(3)
    model, head = build_model(new, ours.vocabulary_size)
    record = begin(new, model, head, ours)
    saved = weights(parent.path, "best")
    shared = 0
    for i, word in enumerate(ours.vocabulary):
        if word in theirs.vocabulary:
            shared += 1
            row = theirs.vocabulary.index(word)
            assert torch.equal(model.embedding.weight[i], saved["model.embedding.weight"][row])
            assert torch.equal(head.bias[i], saved["head.bias"][row])
            assert torch.equal(head.weight[i], saved["head.weight"][row])
        else:
            assert torch.equal(model.embedding.weight[i], fresh.embedding.weight[i])
    assert 5 < record["shared_tokens"] == shared < ours.vocabulary_size
    assert torch.equal(model.layers[0].weight_hh, saved["model.layers.0.weight_hh"])


def test_it_trains_and_resumes_without_the_run_it_began_with(parent, there, tmp_path, monkeypatch):
    whole = train("whole", "trainer.max_steps=6", "model.dropout=0.3")
    record = json.loads((whole / "init.json").read_text())
    assert (record["run"], record["step"]) == (str(parent.path), 7)
    assert load_tokenizer(whole).hash() == load_tokenizer(parent.path).hash()
    begun = weights(parent.path, "best")["model.layers.0.weight_hh"]
    moved = (weights(whole)["model.layers.0.weight_hh"] - begun).abs().max()
    assert 0 < moved < 0.2  # weights within 1, of which new ones would be far
    train("cut", "trainer.max_steps=4", "model.dropout=0.3")
    shutil.copytree(there / "outputs", tmp_path / "outputs", symlinks=True)
    monkeypatch.chdir(tmp_path)
    shutil.rmtree(there / "outputs")
    try:
        assert cli.main(["resume", "cut", "trainer.max_steps=6"]) == 0
    finally:
        shutil.copytree(tmp_path / "outputs", there / "outputs", symlinks=True)
    after = weights(tmp_path / "outputs" / "child" / "cut")
    expected = weights(there / "outputs" / "child" / "whole")
    assert all(torch.equal(after[name], expected[name]) for name in expected)
    assert json.loads((tmp_path / "outputs" / "child" / "cut" / "init.json").read_text()) == record


def test_a_vocabulary_of_the_new_data(parent, there, capsys):
    """By a tokenizer of the same kind, unless another is named."""
    run = train("vocabulary", "init_vocabulary=new", "tokenizer=bytes", "trainer.max_steps=1")
    assert type(load_tokenizer(run)) is Bytes
    run = train("words", "init_vocabulary=new", "trainer.max_steps=2")
    assert "it begins with tiny/lstm-word-document (best, step 7): 1" in capsys.readouterr().err
    record = json.loads((run / "init.json").read_text())
    ours, theirs = load_tokenizer(run), load_tokenizer(parent.path)
    assert record["shared_tokens"] == len(set(ours.vocabulary) & set(theirs.vocabulary))
    assert len(lmkit.load(run).score("the zebra")) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["init=none"], "init=none: RUN=none names no run in outputs; there are:"),
        (["model=gru"], "model=gru: init=lstm-word-document says what the model is; leave it out"),
        (["head=full"], "head=full: init=lstm-word-document says what the head is; leave it out"),
        (
            ["tokenizer=bpe"],
            "tokenizer=bpe: init=lstm-word-document says what the tokenizer is; leave it out; for "
            "another vocabulary set init_vocabulary=new",
        ),
        (
            ["model.hidden_size=30"],
            "do not fit the config: size mismatch for model.layers.0.weight",
        ),
        (["model.num_layers=1"], "its weights do not fit the config: Unexpected key(s)"),
        (["init_checkpoint=none"], "has no checkpoint=none; it has best, last, step-000000007"),
        (["init=null", "init_vocabulary=new"], "no effect without init=RUN; leave it out"),
        (["init_vocabulary=own"], "init_vocabulary=own: expected kept | new"),
    ],
)
def test_mistakes_are_told_before_a_run_begins(there, parent, capsys, arguments, message):
    run = train("never", *arguments, code=2)
    assert message in capsys.readouterr().err
    assert not run.exists()


def test_tokens_of_another_vocabulary_are_refused(parent, there, capsys):
    assert cli.main(["prepare", "store=store", "data=wikitext", "data.path=new"]) == 0
    data = ["data=store", "data.path=store", "trainer.max_steps=2", "run_id=never"]
    assert cli.main(["train", *data, "init=lstm-word-document", "name=child"]) == 2
    told = capsys.readouterr().err
    assert "it has another vocabulary (18 tokens) than the data (18)" in told
    assert "with init_vocabulary=new the rows of embedding and head are new" in told
