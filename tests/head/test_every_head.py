"""What all heads promise: exact resumes, the same in any number of processes, and commands that
take them or refuse them."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from fitted import Fitted, Place, assert_same
from in_memory import VOCABULARY, Text, loader

import lmkit
from lmkit import cli
from lmkit.errors import UserError
from lmkit.head import (
    AdaptiveSoftmax,
    FullSoftmax,
    MixtureOfSoftmaxes,
    ProjectedSoftmax,
    SampledSoftmax,
)
from lmkit.model import GRU, LSTM, Elman, Window
from lmkit.tokenizer import load_tokenizer
from lmkit.training.task import Task

HEADS = {
    "full": ("head=full",),
    "adaptive": ("head=adaptive", "head.cutoffs=[8,20]"),
    "adaptive_untied": ("head=adaptive", "head.cutoffs=[8,20]", "model.tie_weights=false"),
    "mixture": ("head=mixture", "head.num_experts=3", "head.latent_dropout=0.4"),
    "mixture_untied": ("head=mixture", "head.num_experts=3", "model.tie_weights=false"),
    "projected": ("head=projected", "head.projection_dropout=0.3", "model.hidden_sizes=[6]"),
    "projected_untied": ("head=projected", "model.hidden_sizes=[6]", "model.tie_weights=false"),
    "sampled": ("head=sampled", "head.num_samples=20"),
    "sampled_untied": (
        *("head=sampled", "head.num_samples=20", "head.sampler=unigram"),
        "model.tie_weights=false",
    ),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Place:
    return Place(tmp_path_factory.mktemp("place"))


@pytest.mark.parametrize("kernels", ["torch", "auto"])
@pytest.mark.parametrize("head", sorted(set(HEADS) - {"full"}))
def test_a_run_that_was_killed_goes_on_bit_for_bit(place, head, kernels):
    argv = (*HEADS[head], f"kernels={kernels}", "callbacks.checkpoint.every_n_train_steps=4")
    whole = place.fit(*argv)
    assert_same(place.train(*argv, kill_at=(6, 21)), whole)
    assert len(whole.of("train/tokens_per_second")) == 0  # of the clock
    measured = "train/sampled_nll" if head.startswith("sampled") else "train/nll"
    values = whole.of(measured)
    assert len(values) > 30
    assert sum(values[-5:]) < sum(values[:5])  # it learns
    assert whole.of("val/nll")[-1] < whole.of("val/nll")[0]


MAKERS = {
    "adaptive": lambda model: AdaptiveSoftmax(8, VOCABULARY, model.embedding, cutoffs=[4, 9]),
    "mixture": lambda model: MixtureOfSoftmaxes(
        8, VOCABULARY, model.embedding, num_experts=3, latent_dropout=0.4
    ),
    "projected": lambda model: ProjectedSoftmax(
        8, VOCABULARY, embedding=model.embedding, projection_dropout=0.4
    ),
    "sampled": lambda model: SampledSoftmax(
        8, VOCABULARY, embedding=model.embedding, num_samples=9
    ),
}


def window_gradients(task, windows, divide=1):
    task.zero_grad()
    sums = torch.zeros(1, dtype=torch.float64)
    for window in windows:
        (task.training_step(window, window.index) / divide).backward()
    sums, task.values.sums = task.values.sums, torch.zeros_like(sums)
    every = [p.grad.to_dense().clone() for p in task.parameters()]
    return every, sums


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", [LSTM, GRU, Elman, Window])
@pytest.mark.parametrize("head", MAKERS)
def test_gradients_do_not_depend_on_the_number_of_processes(head, kind, tied):
    """Nor what is logged: the masks and draws of a window are those of all its lanes."""
    torch.manual_seed(1)
    sizes = {"embedding_size": 8, "hidden_size": 8, "init_range": 1.0, "tie_weights": tied}
    model = kind(VOCABULARY, dropout=0.3, **sizes)
    task = Task(model, MAKERS[head](model), lambda params: torch.optim.SGD(params, lr=0.1))
    text = Text([9, 1, 4, 13, 2, 6, 8])
    whole, logged = window_gradients(task, loader(text))
    shares = [
        window_gradients(task, loader(text, rank=rank, world_size=2), divide=2) for rank in range(2)
    ]
    assert all(gradient.abs().max() > 0 for gradient in whole)
    for one, *parts in zip(whole, *(gradients for gradients, _ in shares), strict=True):
        torch.testing.assert_close(sum(parts), one, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(sum(sums for _, sums in shares), logged)


@pytest.fixture(scope="module")
def runs(place) -> dict[str, Fitted]:
    return {head: place.fit(*HEADS[head]) for head in HEADS}


@pytest.fixture
def there(place, monkeypatch) -> Path:
    monkeypatch.chdir(place.outputs.parent)
    return place.outputs.parent


@pytest.mark.parametrize("head", HEADS)
def test_a_run_is_evaluated_scored_and_writes(runs, there, head, capfd):
    run = runs[head].path
    given = ["evaluate", str(run), "split=valid", "threads=1", "format=json"]
    assert cli.main(given) == 0
    out = capfd.readouterr().out
    (found,) = json.loads(out[out.index("\n{") :])["results"]
    assert found["nll"] == pytest.approx(runs[head].summary["best/val/nll"], abs=1e-6)
    trained = lmkit.load(run)
    scores = trained.score("the cat sat")
    assert sum(each.nll for each in scores) / len(scores) == pytest.approx(
        trained.nll("the cat sat"), abs=1e-5
    )
    assert len(trained.table([{"sentence": "the cat sat"}])) == 3
    assert len(trained.generate("the", num_tokens=4)[0]) >= 3


@pytest.mark.parametrize("head", HEADS)
def test_a_training_begins_with_its_weights(runs, there, place, head):
    begun = ("trainer.max_steps=1", "optimizer.lr=1e-9", "callbacks.checkpoint.monitor=null")
    keys = (
        f"init={runs[head].path}",
        "init_checkpoint=last",
        *begun,
        "trainer.limit_val_batches=0",
    )
    settings = [each for each in place.settings if not each.startswith(("model.", "tokenizer="))]
    assert cli.main(["train", *settings, *keys, f"run_id=child-{head}"]) == 0
    child = Fitted(place.outputs / "tiny" / f"child-{head}")
    for name, value in runs[head].weights.items():
        torch.testing.assert_close(child.weights[name], value, atol=1e-6, rtol=0)


@pytest.mark.parametrize("head", HEADS)
def test_a_new_vocabulary_has_the_rows_of_known_tokens_or_is_refused(
    runs, there, place, head, capfd
):
    settings = [each for each in place.settings if not each.startswith(("model.", "tokenizer="))]
    keys = (
        "init_vocabulary=new",
        "tokenizer=characters",
        "trainer.max_steps=1",
        "optimizer.lr=1e-9",
    )
    given = ["train", *settings, f"init={runs[head].path}", *keys, f"run_id=new-{head}"]
    code = cli.main([*given, "trainer.limit_val_batches=0", "callbacks.checkpoint.monitor=null"])
    if head.startswith("adaptive"):
        assert code == 2
        assert capfd.readouterr().err.splitlines() == [
            "error: 1 mistake:",
            "  init_vocabulary=new: the weights of AdaptiveSoftmax depend on the vocabulary, and "
            "cannot be taken over token by token; leave init_vocabulary out",
        ]
        return
    assert code == 0
    child = Fitted(place.outputs / "tiny" / f"new-{head}")
    (row,) = load_tokenizer(child.path).encode_text("t")
    for name in ("head.weight", "head.bias"):
        theirs = runs[head].weights[name][ord("t")]
        torch.testing.assert_close(child.weights[name][row], theirs, atol=1e-6, rtol=0)


@pytest.mark.parametrize("head", HEADS)
def test_an_export_is_the_model_or_refused(runs, there, head, capfd):
    path = f"path=export-{head}"
    code = cli.main(["export", str(runs[head].path), path])
    if head.partition("_")[0] in ("full", "sampled"):
        assert code == 0
        shutil.rmtree(f"export-{head}")
    else:
        assert code == 2
        name = type(lmkit.load(runs[head].path).head).__name__
        assert (
            f"error: head={name}: the exported file knows FullSoftmax and SampledSoftmax, no "
            "other; format=safetensors writes any, for lmkit"
        ) in capfd.readouterr().err
        assert not Path(f"export-{head}").exists()
    assert cli.main(["export", str(runs[head].path), path, "format=safetensors"]) == 0
    assert cli.main(["import", f"export-{head}", f"run_id=import-{head}", "name=imported"]) == 0
    imported = lmkit.load(Path("outputs", "imported", f"import-{head}"))
    text = "the dog ran on and on"
    assert imported.nll(text) == pytest.approx(lmkit.load(runs[head].path).nll(text), abs=1e-6)


def test_a_head_of_ones_own_is_asked_for_nothing_new(place):
    """Its values are logged as before, and its rows follow their tokens."""

    class Own(FullSoftmax):
        pass

    assert (Own.measure, Own.wants_counts, Own.token_rows) == ("nll", False, ("weight", "bias"))
    assert Own.misfits({}, None) == []
    with pytest.raises(UserError, match="the vocabulary has 5 tokens"):
        AdaptiveSoftmax(4, 5, cutoffs=[5])
