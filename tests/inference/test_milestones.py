"""All checkpoints of a run: in order, evaluated and exported by one command."""

import itertools
import json
from pathlib import Path

import pytest
from trained_run import make_run, save_weights

import lmkit
from lmkit import cli
from lmkit.commands.evaluate import evaluate
from lmkit.errors import ResultError, UserError
from lmkit.inference import Dynamic, Evaluation
from lmkit.inference.cache import Cache
from lmkit.inference.dynamic import DivergedError
from lmkit.inference.milestones import milestones
from lmkit.inference.trained import TrainedModel
from lmkit.run.checkpoints import AtomicCheckpointIO, load_checkpoint
from lmkit.tokenizer import load_tokenizer

TEXT = "the cat saw a dog on the mat ."
NAMES = ("chck_900K", "chck_2M", "chck_10M")


@pytest.fixture
def run(tmp_path):
    """A run with three milestones, each with weights of its own."""
    run = make_run(tmp_path / "outputs")
    state = load_checkpoint(run.path / "checkpoints" / "best.ckpt")
    for number, name in enumerate(reversed(NAMES), 1):
        weights = {key: value / number for key, value in state["state_dict"].items()}
        saved = {"state_dict": weights, "global_step": 10 - number, "epoch": 0}
        identity = {"tokenizer": load_tokenizer(run.path).hash()}
        path = run.path / "checkpoints" / f"{name}.ckpt"
        AtomicCheckpointIO(identity).save_checkpoint(saved, path)
    return run


def perplexity(run, name, text=TEXT):
    return TrainedModel.load(run, run.config(), name).perplexity(text)


def test_they_are_ordered_by_what_was_seen(run):
    found = milestones(run)
    assert [point.name for point in found] == list(NAMES)
    assert [point.number for point in found] == [900_000, 2_000_000, 10_000_000]
    assert {point.unit for point in found} == {"words"}


def test_without_milestones_each_checkpoint_is_one(tmp_path):
    run = make_run(tmp_path / "outputs")
    save_weights(run, run.config(), load_tokenizer(run.path), step=20)
    assert [point.name for point in milestones(run)] == ["step-000000007", "step-000000020"]
    for path in (run.path / "checkpoints").iterdir():
        path.unlink()
    with pytest.raises(UserError, match="has no checkpoint"):
        milestones(run)


def test_a_text_and_its_curve(run, capsys):
    given = ["evaluate", str(run.path), f"text={TEXT}", "checkpoint=all"]
    assert cli.main([*given, "protocol=[document,sentence]"]) == 0
    (picture,) = (run.path / "curves").glob("text-*.png")
    assert picture.read_bytes().startswith(b"\x89PNG")
    result = json.loads(picture.with_suffix(".json").read_text())
    for point, name in zip(result["checkpoints"], NAMES, strict=True):
        assert point["name"] == name
        measured = point["result"]["results"][0]["perplexity"]
        assert measured == pytest.approx(perplexity(run, name), rel=1e-5)
    assert "chck_900K" in capsys.readouterr().out


def test_each_evaluation_has_a_curve_of_its_own(run, tmp_path):
    """Also where only a key of the config makes it another one; the same one has the same file."""
    other, curves = tmp_path / "other", run.path / "curves"
    other.mkdir()
    for split in ("train", "valid", "test"):
        (other / f"{split}.txt").write_text(" = New = \n the cat . \n")
    given = ["evaluate", str(run.path), "checkpoint=all"]
    changes = [
        {},
        {"data.path": str(other)},
        {"trainer.precision": "bf16-mixed"},
        {"kernels": "torch"},
    ]
    written = {}
    for change in changes:
        words = [f"{key}={value}" for key, value in change.items()]
        for _ in range(2):
            assert cli.main([*given, *words]) == 0
        (file,) = set(curves.glob("test-*.json")) - set(written)
        written[file] = json.loads(file.read_text())
        assert change.items() <= written[file]["config"].items()
        assert written[file]["settings"] == {}
        assert file.with_suffix(".png").exists()
    tokens = [each["checkpoints"][0]["result"]["num_tokens"] for each in written.values()]
    assert tokens[1] == 8 != tokens[0] == tokens[2]


def test_a_curve_says_what_was_evaluated(run, tmp_path, monkeypatch):
    names = set()
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.txt").write_text(TEXT)
        monkeypatch.chdir(tmp_path / folder)
        result = evaluate(
            run, run.config(), checkpoint="all", file="a.txt", protocol="stream", cache=Cache(5)
        )
        assert result["settings"].pop("cache")["size"] == 5
        file = str(tmp_path / folder / "a.txt")
        assert result["settings"] == {"file": file, "protocol": "stream"}
        assert result["config"] == {}
        names.add(result["curve"])
    assert len(names) == 2


def test_a_checkpoint_whose_weights_diverge_leaves_the_others(run, monkeypatch, capsys):
    read, number = Evaluation.read_dynamically, itertools.count()

    def once(self, *arguments, **named):
        if next(number) == 1:
            raise DivergedError("dynamic: too far")
        return read(self, *arguments, **named)

    monkeypatch.setattr(Evaluation, "read_dynamically", once)
    with pytest.raises(ResultError) as error:
        evaluate(run, run.config(), checkpoint="all", dynamic=Dynamic("sgd", lr=0.01))
    assert str(error.value) == "chck_2M: dynamic: too far, or take tune=true in its place"
    result, out = error.value.result, capsys.readouterr().out
    assert json.loads(Path(result["curve"]).with_suffix(".json").read_text()) == result
    for point, name in zip(result["checkpoints"], NAMES, strict=True):
        (measured,) = point["result"]["results"]
        assert ("methods" in measured, "error" in measured) == (
            name != "chck_2M",
            name == "chck_2M",
        )
        assert f"{measured['perplexity']:,.2f}" in out


def test_a_suite_and_its_curve(run, tmp_path):
    good = ["the cat ran .", "a dog saw the cat .", "the mat lay there ."]
    bad = ["cat the ran .", "a saw dog the cat .", "the mat there lay ."]
    lines = "\n".join(line for pair in zip(good, bad, strict=True) for line in pair)
    (tmp_path / "pairs.txt").write_text(lines)
    given = ["suite=lines", f"path={tmp_path / 'pairs.txt'}", "checkpoint=all"]
    assert cli.main(["evaluate", str(run.path), *given]) == 0
    (file,) = (run.path / "curves").glob("lines-*.json")
    for point, name in zip(json.loads(file.read_text())["checkpoints"], NAMES, strict=True):
        trained = TrainedModel.load(run, run.config(), name)
        sums = [
            sum(token.nll for token in trained.score(text, protocol="sentence")[:-1])
            for text in (*good, *bad)
        ]
        holds = [sums[i] < sums[i + 3] for i in range(3)]
        found = point["result"]["runs"][0]["overall"]["accuracy"]
        assert found == pytest.approx(sum(holds) / 3)


def test_all_are_exported_as_babylm_names_them(run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    given = ["export", str(run.path), "path=models", "checkpoint=all"]
    assert cli.main([*given, "format=safetensors"]) == 0
    assert sorted(path.name for path in (tmp_path / "models").iterdir()) == sorted(NAMES)
    assert cli.main(["import", "models/chck_2M", "run_id=again", "name=imported"]) == 0
    assert cli.main([*given]) == 2
    assert "path=models is there already: give another" in capsys.readouterr().err
    assert lmkit.load("again").perplexity(TEXT) == pytest.approx(perplexity(run, "chck_2M"))
