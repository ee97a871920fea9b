"""What `lmkit.load` gives, against stock modules fed one text at a time, and what it refuses."""

import json
import math
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from trained_run import MODELS, SlowTwin, load, make_run, save_weights, warned

import lmkit
from lmkit.errors import UserError
from lmkit.inference import TrainedModel
from lmkit.inference import trained as trained_module
from lmkit.run.checkpoints import AtomicCheckpointIO, load_checkpoint
from lmkit.tokenizer import Bytes, load_tokenizer

TEXT = "the cat sat . \n\n a zebra saw the dog on the mat . \n the end"


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    return tmp_path_factory.mktemp("outputs")


@pytest.fixture(scope="module")
def lstm(outputs):
    return make_run(outputs)


@pytest.mark.parametrize("kind", MODELS)
def test_a_score_is_what_the_whole_prefix_predicts(outputs, kind, monkeypatch):
    monkeypatch.setattr(trained_module, "SCORED_POSITIONS", 7)  # several windows
    trained = load(make_run(outputs, kind))
    (ids,) = [trained.tokenizer.encode([TEXT]).ids.tolist()]
    log_prob = SlowTwin(trained).log_prob([trained.tokenizer.eos_id, *ids[:-1]])
    scores = trained.score(TEXT)
    assert [score.token for score in scores] == ids
    marked = [" <unk>" if score.unknown else score.piece for score in scores]
    assert marked == trained.tokenizer.pieces(ids)
    assert [score.piece for score in scores if score.unknown] == [" zebra", " end"]
    assert "".join(s.piece for s in scores) == TEXT.replace(" \n", "\n").replace("\n ", "\n") + "\n"
    for score, row in zip(scores, log_prob, strict=True):
        assert score.nll == pytest.approx(-row[score.token].item(), abs=1e-5)
        assert score.bits == pytest.approx(score.nll / math.log(2))
        assert score.entropy == pytest.approx(-(row.exp() * row).sum().item(), abs=1e-5)
        order = row.argsort(descending=True).tolist()
        assert score.rank == 1 + order.index(score.token)
        names = [trained.tokenizer.pieces([i])[0] for i in order[:5]]
        assert [name for name, _ in score.top] == names
        probabilities = [probability for _, probability in score.top]
        assert probabilities == pytest.approx(row.exp()[order[:5]].tolist(), abs=1e-6)
    mean = sum(score.nll for score in scores) / len(scores)
    assert trained.nll(TEXT) == pytest.approx(mean, abs=1e-6)
    assert trained.perplexity(TEXT) == pytest.approx(math.exp(mean), rel=1e-6)


def test_under_sentence_every_line_is_scored_by_itself(outputs):
    trained = load(make_run(outputs, protocol="sentence"))
    assert trained.protocol == "sentence"
    together = trained.score(TEXT)
    twin, eos_id = SlowTwin(trained), trained.tokenizer.eos_id
    apart = []
    for line in TEXT.split("\n"):
        ids = trained.tokenizer.encode([line]).ids.tolist()
        rows = twin.log_prob([eos_id, *ids[:-1]])
        apart += [-rows[place, token].item() for place, token in enumerate(ids)]
    assert [s.nll for s in together] == pytest.approx(apart, abs=1e-5)
    carried = trained.score(TEXT, protocol="document")
    assert [s.nll for s in together] != pytest.approx([s.nll for s in carried], abs=1e-2)


def test_equally_likely_tokens_share_the_best_rank(lstm):
    trained = load(lstm)
    with torch.no_grad():
        trained.head.weight.zero_()
        trained.head.bias.zero_()
    size = trained.tokenizer.vocabulary_size
    for score in trained.score("the cat"):
        assert score.rank == 1
        assert score.nll == pytest.approx(math.log(size))
        assert score.entropy == pytest.approx(math.log(size), rel=1e-5)


@pytest.mark.parametrize("tokenizer", ["bytes", "characters", "bpe"])
def test_pieces_join_to_the_text(outputs, tokenizer):
    trained = load(make_run(outputs, tokenizer=tokenizer))
    text = "the cat\n saw" if tokenizer == "characters" else "thé cät\n 🙂 ran"
    scores = trained.score(text)
    assert "".join(score.piece for score in scores) == text
    assert scores[-1].token == trained.tokenizer.eos_id
    assert scores[-1].piece == ""


def test_load_finds_a_run_by_directory_id_prefix_and_latest(outputs, lstm, tmp_path):
    by_path = lmkit.load(lstm.path)
    assert by_path.checkpoint == lstm.path / "checkpoints" / "best.ckpt"
    make_run(tmp_path)
    expected = by_path.nll(TEXT)
    for name in ("lstm-word-document", "lstm-word-d", "tiny/lstm-word-document", "latest"):
        assert lmkit.load(name, outputs=tmp_path).nll(TEXT) == expected
    assert lmkit.load(lstm.path, checkpoint="step-000000007").nll(TEXT) == expected
    with pytest.raises(UserError, match="RUN=nothing names no run in "):
        lmkit.load("nothing", outputs=tmp_path)


def test_importing_lmkit_stays_cheap():
    heavy = ("torch", "lightning", "numpy", "hydra", "wandb", "trackio")
    program = f"import lmkit, sys; lmkit.load; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_loading_imports_neither_wandb_nor_trackio(lstm):
    program = (
        f"import lmkit, sys; lmkit.load({str(lstm.path)!r}).nll('the cat'); "
        "print([m for m in ('wandb', 'trackio', 'datasets') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_a_run_without_checkpoints(tmp_path):
    run = make_run(tmp_path)
    for path in (run.path / "checkpoints").iterdir():
        path.unlink()
    with pytest.raises(UserError) as error:
        load(run)
    assert str(error.value) == (
        f"{run.id} has no checkpoint in {run.path}/checkpoints: train it first, or longer"
    )


def test_a_checkpoint_that_is_not_there(tmp_path, caplog):
    run = make_run(tmp_path)
    with pytest.raises(UserError) as error:
        TrainedModel.load(run, run.config(), "step-3")
    assert str(error.value) == (
        f"{run.id} has no checkpoint=step-3; it has best, last, step-000000007"
    )
    save_callbacks(run, {"Checkpoint": {"best_step": None}, "Other": {"best_step": "none"}})
    (run.path / "checkpoints" / "best.ckpt").unlink()
    assert load(run).checkpoint == run.path / "checkpoints" / "last.ckpt"
    assert warned(caplog) == [
        f"{run.id} has no best checkpoint, as no validation has chosen one: taking the last"
    ]


def save_callbacks(run, callbacks):
    """Record their states in the run's one checkpoint."""
    path = run.path / "checkpoints" / "step-000000007.ckpt"
    AtomicCheckpointIO().save_checkpoint(load_checkpoint(path) | {"callbacks": callbacks}, path)


@pytest.mark.parametrize("step", [3, 0])
def test_a_best_checkpoint_that_has_gone_is_not_the_last(tmp_path, step):
    run = make_run(tmp_path)
    folder = run.path / "checkpoints"
    other = {"Other": {"best_step": "none"}, "Another": "none"}
    save_callbacks(run, other | {"Checkpoint": {"best_score": 1.0, "best_step": step}})
    assert load(run).checkpoint == folder / "best.ckpt"
    (folder / "best.ckpt").unlink()
    with pytest.raises(UserError) as error:
        load(run)
    assert str(error.value) == (
        f"{run.id} has lost its best checkpoint: that of step {step} is no longer in {folder}; put "
        "it back, or take another (it has last, step-000000007)"
    )
    assert TrainedModel.load(run, run.config(), "last").checkpoint == folder / "last.ckpt"


@pytest.mark.parametrize("keep", [0, 100, -1])
def test_a_damaged_checkpoint_is_refused(tmp_path, keep):
    run = make_run(tmp_path)
    path = run.path / "checkpoints" / "step-000000007.ckpt"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match=r"checkpoint .*step-000000007.ckpt has \d+ bytes where"):
        load(run)


def test_another_tokenizer_is_refused_by_its_hash(tmp_path):
    run = make_run(tmp_path)
    before = load_tokenizer(run.path).hash()
    state = json.loads((run.path / "tokenizer.json").read_text())
    state["vocabulary"][5:7] = reversed(state["vocabulary"][5:7])  # as many words, elsewhere
    (run.path / "tokenizer.json").write_text(json.dumps(state))
    after = load_tokenizer(run.path).hash()
    with pytest.raises(UserError) as error:
        load(run)
    assert str(error.value) == (
        f"checkpoint {run.path}/checkpoints/best.ckpt was trained with another vocabulary: its "
        f"tokenizer has the hash {before[:12]}, the run's tokenizer.json {after[:12]}; put back "
        "the tokenizer.json that the run was trained with"
    )


def test_another_vocabulary_is_refused_by_its_size_where_no_hash_is_known(tmp_path):
    run = make_run(tmp_path)
    size = load_tokenizer(run.path).vocabulary_size
    Bytes().save(run.path)
    (run.path / "checkpoints" / "step-000000007.json").unlink()
    with pytest.raises(UserError) as error:
        load(run)
    assert str(error.value) == (
        f"checkpoint {run.path}/checkpoints/best.ckpt was trained with another vocabulary: "
        f"{size} tokens, found 257 in the run's tokenizer.json; put back the tokenizer.json that "
        "the run was trained with"
    )


def test_model_and_tokenizer_cannot_be_changed(lstm):
    config = lstm.config()
    config["model"]["hidden_size"] = 13
    with pytest.raises(UserError, match="model cannot be changed: lstm-word-document was trained"):
        TrainedModel.load(lstm, config)
    config = lstm.config() | {"tokenizer": {"_target_": "lmkit.tokenizer.Bytes"}}
    with pytest.raises(UserError, match=r"tokenizer cannot be changed: .*; leave tokenizer out"):
        TrainedModel.load(lstm, config)


def test_weights_that_do_not_fit_the_config(tmp_path):
    run = make_run(tmp_path)
    other = run.config()
    other["model"] |= {"hidden_size": 14, "embedding_size": 14}
    save_weights(run, other, load_tokenizer(run.path), step=8)
    with pytest.raises(UserError, match=r"best.ckpt does not fit the run's config: size mismatch"):
        load(run)


def test_weights_that_are_not_finite_are_said_to_be(tmp_path, caplog):
    run = make_run(tmp_path)
    save_weights(run, run.config(), load_tokenizer(run.path), scale=math.nan)
    load(run)
    assert warned(caplog) == [
        f"checkpoint {run.path}/checkpoints/best.ckpt has weights that are not finite: training "
        "had diverged"
    ]


def test_a_run_of_another_machine_computes_on_the_cpu(lstm, caplog, monkeypatch):
    config = lstm.config()
    config["trainer"] |= {"accelerator": "cuda", "precision": "16-mixed"}
    here = SimpleNamespace(
        accelerator=lambda name: name,
        is_available=lambda name: name == "cpu",
        precision=lambda name: "bf16-mixed",
    )
    monkeypatch.setattr(trained_module, "hardware", here)
    trained = TrainedModel.load(lstm, config)
    assert (trained.device, trained.precision) == ("cpu", "bf16-mixed")
    assert warned(caplog) == [
        "trainer.accelerator=cuda is not to be had here: computing on the cpu"
    ]
    assert trained.nll(TEXT) == pytest.approx(load(lstm).nll(TEXT), rel=0.03)
    assert trained.nll(TEXT) != load(lstm).nll(TEXT)


def test_texts_that_cannot_be_scored(lstm):
    trained = load(lstm)
    for empty in ("", " \n\t"):
        with pytest.raises(UserError, match=r"^the text is empty: give one that has words$"):
            trained.score(empty)
    with pytest.raises(UserError) as error:
        trained.perplexity("the \udcff cat")
    assert str(error.value) == (
        r"the text is not Unicode: '\udcff' at character 4; give it as UTF-8"
    )


def test_kernels_and_threads_hold_where_a_model_computes(lstm, monkeypatch):
    monkeypatch.setattr("lmkit.kernels.library.load", lambda: pytest.fail("compiled"))
    trained = lmkit.load(lstm.path, kernels="torch", threads=3)
    seen = []
    forward = trained.model.forward
    monkeypatch.setattr(
        trained.model, "forward", lambda *a: (seen.append(torch.get_num_threads()), forward(*a))[1]
    )
    before = torch.get_num_threads()
    trained.nll("the cat sat .")
    trained.score("the cat sat .")
    trained.generate("the ", num_tokens=3)
    assert set(seen) == {3}
    assert torch.get_num_threads() == before


def test_a_run_is_loaded_in_full_precision_whatever_it_was_trained_in(outputs):
    run = make_run(outputs / "bf16", "lstm")
    config = run.config()
    config["trainer"]["precision"] = "bf16-mixed"
    run.write("config.yaml", config)
    assert lmkit.load(run.path).precision == "32-true"
    assert lmkit.load(run.path, precision="bf16-mixed").precision == "bf16-mixed"
    with pytest.raises(UserError, match=r"trainer\.precision=half"):
        lmkit.load(run.path, precision="half")


def test_numbers_that_cannot_be_are_refused_where_a_run_is_read_too(lstm):
    with pytest.raises(UserError, match="threads=0: must be at least 1"):
        lmkit.load(lstm.path, threads=0)
