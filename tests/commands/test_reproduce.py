"""`lmkit reproduce` on a tiny recipe that is trained for real: pass, fail, cut short, the list."""

import json
import math
import os
import re
from pathlib import Path

import own_recipe
import pytest
from trained_run import real_stdout, warned

from lmkit import cli
from lmkit.run import Run

PLAIN = ["trainer.precision=32-true", "kernels=torch", "threads=1", "callbacks.samples=null"]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("reproduce")
    own_recipe.write_text(place / "ptb")
    own_recipe.write_recipe(place / "conf")
    return place


@pytest.fixture
def place(directory: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(directory)
    own_recipe.write_recipe(directory / "conf")
    return directory


def reproduce(*argv: str) -> int:
    return cli.main(["reproduce", "tiny", "--config-dir=conf", "data.path=ptb", *PLAIN, *argv])


def record(run: str) -> dict:
    return json.loads(Path("outputs/tiny", run, "reproduction.json").read_text())


def row(out: str, name: str) -> list[str]:
    """The cells of the first line of a table that begins with a name."""
    line = next(line for line in out.splitlines() if line.startswith(f" {name}"))
    return re.split(r"\s{2,}", line.strip())


def test_a_whole_training_passes_or_fails_by_its_numbers(place, capsys):
    assert reproduce() == 0
    out = capsys.readouterr().out
    found = record("seed-1")
    assert found["verdict"] == "pass"
    valid, test = (each["ours"] for each in found["rows"][:2])
    assert row(out, "valid  ") == ["valid", "stream, 2 lanes", "12.50", f"{valid:.2f}", "1", "pass"]
    assert row(out, "test  ") == ["test", "stream, 1 lane", "12.50", f"{test:.2f}", "1", "pass"]
    assert re.search(r"valid, cache +stream", out)
    assert "pass: tiny by tiny/seed-1, against nobody 2026, table 0\n" in out
    # What the training itself has measured, and each protocol's own lanes.
    run = Run.find("outputs", "seed-1")
    assert valid == run.read("summary.json")["best/val/perplexity"]
    by_document = [each for each in found["rows"] if each["protocol"] == "document"]
    assert [(each["number"], each["num_lanes"]) for each in by_document] == [
        ("valid", 36),
        ("test", 36),
    ]
    assert len(re.findall(r"^ (?:valid|test) +document  ", out, re.MULTILINE)) == 2
    assert all(each["reached"] is None for each in by_document)
    assert found["cost"]["tokens"] == 2 * own_recipe.TOKENS["train"]

    # The same command goes on with the run, which has ended, by other facts.
    own_recipe.write_recipe(place / "conf", valid=5.0, tolerance=0.5)
    with real_stdout():
        assert reproduce("format=json") == 1
    again = record("seed-1")
    assert (again["verdict"], again["rows"][0]["ours"]) == ("fail", valid)
    assert f"error: tiny is not reproduced: valid {valid:.2f}, published 5.00" in (
        capsys.readouterr().err
    )


def test_a_shorter_training_is_neither_and_can_go_on(place, capsys):
    assert reproduce("seed=2", "trainer.max_steps=3", "results=results.md") == 0
    out = capsys.readouterr().out
    assert record("seed-2")["verdict"] == "cut short"
    assert row(out, "valid  ")[-1] == row(out, "test  ")[-1] == "cut short"
    assert "\n  trainer.max_steps is not set in the recipe, 3 in the run\n" in out
    assert "| tiny | perplexity | 12.50 / 12.50 | 1 | " in Path("results.md").read_text()
    assert "| cut short: tiny/seed-2, seed 2; " in Path("results.md").read_text()

    assert reproduce("seed=2", "results=results.md") == 0
    assert record("seed-2")["verdict"] == "pass"
    assert "| pass: tiny/seed-2, seed 2; " in Path("results.md").read_text()
    # And what is cut short does not take the place of what is whole.
    assert reproduce("seed=3", "trainer.max_steps=3", "results=results.md") == 0
    assert "| pass: tiny/seed-2, seed 2; " in Path("results.md").read_text()
    kept = "\nresults.md keeps the whole training tiny/seed-2 (pass)\n"
    assert capsys.readouterr().out.endswith(kept)
    assert json.loads(Path("results.json").read_text())["tiny"]["run"] == "tiny/seed-2"


def test_a_run_that_goes_on_elsewhere_names_each_machine_and_no_speed(place, monkeypatch, capsys):
    """Tokens over the seconds of both would be the speed of neither."""

    def processor(name):
        monkeypatch.setattr("lmkit.run.environment._processors", lambda: iter([name]))

    processor("Abacus")
    assert reproduce("seed=5", "trainer.max_steps=3") == 0
    cores = f"{os.cpu_count()} cores"
    assert re.search(rf"\d tokens/s in training, Abacus, {cores}, 32-true", capsys.readouterr().out)
    assert record("seed-5")["cost"]["tokens_per_second"] > 0
    processor("Babbage")
    assert reproduce("seed=5", "results=elsewhere.md") == 0
    said = f"seed 5; 0 min, Abacus, {cores}, then Babbage, {cores}, 32-true"
    assert said in capsys.readouterr().out
    assert said in Path("elsewhere.md").read_text()
    assert record("seed-5")["cost"]["tokens_per_second"] is None
    processor("Colossus")  # which only measures
    assert reproduce("seed=5") == 0
    assert said in capsys.readouterr().out


def test_a_schedule_that_was_drawn_over_another_length_is_another_training(place, capsys):
    own_recipe.write_recipe(place / "conf", scheduler="one_cycle")
    assert reproduce("seed=6", "trainer.max_epochs=1") == 0
    assert record("seed-6")["verdict"] == "cut short"
    capsys.readouterr()
    assert reproduce("seed=6") == 0
    shown = capsys.readouterr()
    why = "  trainer.max_epochs is 2 in the recipe, 1 in a part of the run\n"
    before = shown.err.partition("going on from step")[0]
    assert f"other settings: this run will be neither pass nor fail\n{why}" in before
    assert "  to train the recipe whole, begin another run: run_id=NAME\n" in before
    assert why in shown.out
    found = record("seed-6")
    assert (found["verdict"], found["changed"]) == ("other settings", {})


def test_a_run_that_has_ended_is_measured_on_the_text_of_now(place, capsys):
    assert reproduce("seed=7", "trainer.max_epochs=1") == 0
    before = record("seed-7")["rows"]
    (place / "ptb").rename(place / "moved")
    try:
        assert reproduce("seed=7", "trainer.max_epochs=1", "data.path=moved") == 0
        assert "has ended and stays as it is" in capsys.readouterr().err
        assert record("seed-7")["rows"] == before
        (place / "moved" / "ptb.test.txt").write_text(" the cat sat on the mat \n")
        assert reproduce("seed=7", "trainer.max_epochs=1", "data.path=moved") == 0
        assert record("seed-7")["texts"] == ["test has 7 tokens, the published one 274"]
    finally:
        (place / "moved").rename(place / "ptb")
        own_recipe.write_text(place / "ptb")


def test_a_recipe_that_begins_with_another_has_its_own_runs(place):
    (place / "conf" / "experiment" / "mine.yaml").write_text(
        "# @package _global_\n# Mine\ndefaults: [tiny, _self_]\nrecipe: {valid: 200, test: 200}\n"
    )
    argv = ["--config-dir=conf", "data.path=ptb", *PLAIN, "results=mine.md"]
    with real_stdout():
        assert cli.main(["reproduce", "mine", *argv, "trainer.max_steps=3"]) == 0
        assert cli.main(["reproduce", "mine", *argv]) == 0
    assert json.loads(Path("outputs/mine/seed-1/reproduction.json").read_text())["recipe"] == "mine"
    assert list(json.loads(Path("mine.json").read_text())) == ["mine"]
    page = Path("mine.md").read_text()
    assert re.search(r"^\| mine .* pass: mine/seed-1, seed 1; ", page, re.MULTILINE)
    assert re.search(r"^\| tiny .* not yet run \|$", page, re.MULTILINE)


def test_other_settings_and_another_text_are_neither(place, capsys):
    few = ["trainer.max_steps=2"]
    assert reproduce("run_id=wide", "model.hidden_size=6", *few) == 0
    assert record("wide")["verdict"] == "other settings"
    shown = capsys.readouterr()
    assert "begin another run" not in shown.err  # this one had nothing otherwise before
    why = (
        "  model.hidden_size is 4 in the recipe, 6 in the run\n"
        "  trainer.max_steps is not set in the recipe, 2 in the run\n"
    )
    assert why in shown.out
    before = shown.err.partition("run tiny/wide")[0]
    assert f"\nother settings: this run will be neither pass nor fail\n{why}" in f"\n{before}"
    other = own_recipe.write_text(place / "other")
    (other / "ptb.test.txt").write_text(" the cat sat on the mat \n")
    assert reproduce("run_id=text", "data.path=other") == 0
    assert record("text")["verdict"] == "other text"
    shown = capsys.readouterr()
    why = "  test has 7 tokens, the published one 274\n"
    assert why in shown.out
    before = shown.err.partition("run tiny/text")[0]
    assert f"\nother text: this run will be neither pass nor fail\n{why}" in f"\n{before}"


def test_a_cache_and_dynamic_evaluation_stand_beside_the_plain_numbers(
    place, capfd, caplog, monkeypatch
):
    """Those of `lmkit evaluate tune=true`, in the paper's protocol; the verdict is not theirs."""
    assert reproduce("seed=4", "further=true", "results=further.md") == 0
    found = record("seed-4")
    assert found["verdict"] == "pass"
    rows = {each["number"]: each for each in found["rows"] if each["protocol"] == "stream"}
    for name, key in (("cache", "cache=2000"), ("dynamic evaluation", "dynamic=rms")):
        capfd.readouterr()
        argv = ["seed-4", "protocol=stream", key, "tune=true", "format=json"]
        with real_stdout():
            assert cli.main(["evaluate", *argv]) == 0
        (result,) = json.loads(capfd.readouterr().out)["results"]
        for split, row in (
            ("valid", result["tuned"]["methods"][-1]),
            ("test", result["methods"][-1]),
        ):
            ours = rows[f"{split}, {name}"]["ours"]
            assert ours == pytest.approx(row["perplexity"], rel=1e-6)
    page = Path("further.md").read_text()
    for name, paper in (("cache", "9.50 / -"), ("dynamic evaluation", "- / 9.50")):
        ours = " / ".join(f"{rows[f'{split}, {name}']['ours']:.2f}" for split in ("valid", "test"))
        assert f" {name} {paper} (ours {ours})" in page

    # They are kept while the best checkpoint and the text are the same, and no longer.
    assert reproduce("seed=4", "results=again.md") == 0
    assert record("seed-4")["rows"] == found["rows"]
    assert Path("again.md").read_text() == page
    summary, kept = (Path("outputs/tiny/seed-4", f"{n}.json") for n in ("summary", "reproduction"))
    for step, then in (
        (1, json.dumps(found)),
        (None, json.dumps({**found, "step": None})),  # which checkpoint, neither says
        (found["step"], "{"),
    ):
        summary.write_text(json.dumps({**json.loads(summary.read_text()), "best/step": step}))
        kept.write_text(then)
        assert reproduce("seed=4") == 0
        assert record("seed-4")["further"] == {}
    assert reproduce("seed=4", "further=true") == 0
    assert record("seed-4")["further"].keys() == {"cache", "dynamic_evaluation"}
    other = own_recipe.write_text(place / "elsewhere")
    (other / "ptb.test.txt").write_text(" the cat sat on the mat \n")
    assert reproduce("seed=4", "data.path=elsewhere") == 0
    assert record("seed-4")["further"] == {}

    # Weights that diverge cost no other number. All are in the recipe's metric.
    monkeypatch.setattr("lmkit.inference.tuning.LR_FACTORS", [1e42])
    own_recipe.write_recipe(place / "conf", metric="bits_per_character")
    assert reproduce("seed=4", "further=true") == 0
    bits = {split: math.log2(number) for split, number in found["further"]["cache"].items()}
    assert record("seed-4")["further"] == {"cache": pytest.approx(bits)}
    assert warned(caplog)[-1].startswith(
        "no number of dynamic_evaluation: dynamic: the weights diverged with all that was tried, "
    )


def test_further_numbers_are_those_of_the_recipe(place, capsys):
    argv = ["wikitext2_ten_minutes", "data.path=ptb", "further=true"]
    assert cli.main(["reproduce", *argv]) == 2
    assert capsys.readouterr().err == (
        "error: further=true: no effect with wikitext2_ten_minutes, which has no number with a "
        "cache or dynamic evaluation; leave it out\n"
    )


def test_the_list_says_how_far_each_has_come(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("lmkit.recipes.status.speed", lambda: 1e10)
    own_recipe.write_recipe(tmp_path / "conf")
    for name, verdict in (("a1", "pass"), ("b2", "cut short")):
        run = tmp_path / "outputs" / "tiny" / name
        (run / "checkpoints").mkdir(parents=True)
        (run / "config.yaml").write_text("{}")
        (run / "reproduction.json").write_text(json.dumps({"verdict": verdict}))
    for name in ("zaremba_small", "zaremba_medium"):
        run = tmp_path / "outputs" / name / "seed-1"
        (run / "checkpoints").mkdir(parents=True)
        (run / "config.yaml").write_text("{}")
    manifest = {"format": 2, "step": 7, "epoch": 3, "epochs_done": 3, "bytes": 0}
    (run / "checkpoints" / "step-000000007.json").write_text(json.dumps(manifest))
    (run / "checkpoints" / "step-000000007.ckpt").touch()
    assert cli.main(["reproduce", "--config-dir=conf"]) == 0
    out = capfd.readouterr().out
    assert row(out, "tiny ") == ["tiny", "12.50", "12.50", "1", "reproduced by tiny/a1"]
    assert row(out, "zaremba_small ")[-1] == "begun: zaremba_small/seed-1"
    assert row(out, "zaremba_medium ")[-1] == "begun, 3 of 39 epochs: zaremba_medium/seed-1"
    assert row(out, "zaremba_large ")[-1].startswith("out of reach here, about ")
    assert row(out, "pytorch_examples_200_short ")[-1].startswith("not yet run, about ")
    assert row(out, "awd_lstm_enwik8 ")[-2] == "0.01 bits per character"
    with real_stdout():
        assert cli.main(["reproduce", "--config-dir=conf", "format=json"]) == 0
    found = json.loads(capfd.readouterr().out)["zaremba_medium"]
    assert (found["word"], found["epochs"]) == ("begun", "3 of 39 epochs")


def test_without_the_text_it_says_which(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["reproduce", "zaremba_small"]) == 2
    assert capsys.readouterr().err == (
        "error: zaremba_small needs data.path: Mikolov's Penn Treebank, the directory of "
        "ptb.train.txt, ptb.valid.txt and ptb.test.txt; lmkit reproduce zaremba_small "
        "data.path=PATH\n"
    )
    assert cli.main(["reproduce", "pytorch_examples_1500", "data.path=x"]) == 2
    assert "no such recipe; did you mean pytorch_examples_" in capsys.readouterr().err
    assert cli.main(["reproduce", "zaremba_small", "data.path=x", "model.hiden_size=3"]) == 2
    assert "did you mean model.hidden_size?" in capsys.readouterr().err
    assert cli.main(["reproduce", "zaremba_small", "data.path=x", "results=page.txt"]) == 2
    assert "results=page.txt: name a page that ends in .md" in capsys.readouterr().err
    assert cli.main(["reproduce", "data.path=x", "seed=2", "outputs=y"]) == 2
    assert capsys.readouterr().err == (
        "error: data.path=x, seed=2: no effect without a RECIPE; name one before it, or leave it "
        "out to list them all\n"
    )
    assert cli.main(["reproduce", "results=doc/results.md"]) == 2
    assert "results=doc/results.md: there is no directory doc" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
