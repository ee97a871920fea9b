"""A model that is counted, from the command line to every command that uses a run."""

import json
import logging
import math
import random
from pathlib import Path

import pytest
from slow_ngrams import START, SlowKneserNey
from trained_run import make_run, real_stdout, warned

import lmkit
from lmkit import cli
from lmkit.run import Run
from lmkit.store import TokenStore

WORDS = ["the", "a", "cat", "dog", "sat", "ran", "on", "mat", "and", "slept", "."]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("counted")
    draw = random.Random(0)
    paragraphs = [
        "\n".join(" ".join(draw.choices(WORDS, k=draw.randint(2, 9))) for _ in range(3))
        for _ in range(60)
    ]
    (place / "text.txt").write_text("\n\n".join(paragraphs) + "\n")
    return place


@pytest.fixture(scope="module")
def settings(place):
    return [
        *("data=files", f"data.path={place / 'text.txt'}", "data.unit=paragraph"),
        *("tokenizer=word", "model=ngram", "model.order=3", "data.batch_size=4"),
        *("name=grams", f"outputs={place / 'outputs'}"),
    ]


def json_of(capfd, *argv):
    """What a command returns; it has to succeed."""
    capfd.readouterr()
    with real_stdout():
        assert cli.main([*argv, "format=json"]) == 0, capfd.readouterr().err
    return json.loads(capfd.readouterr().out)


@pytest.fixture(scope="module")
def run(settings, place):
    assert cli.main(["train", *settings, "run_id=one"]) == 0
    return Run(place / "outputs" / "grams" / "one")


def units(run, split):
    cache = run.path.parents[1] / ".cache"
    (directory,) = [path for path in cache.rglob(split) if (path / "manifest.json").is_file()]
    store, begin = TokenStore.open(directory), 0
    for end in store.document_ends.tolist():
        yield store.tokens[begin:end].tolist()
        begin = end


def test_the_run_is_one_like_any_other(run):
    summary = run.read("summary.json")
    trained = lmkit.load(run.path)
    size, eos = trained.tokenizer.vocabulary_size, trained.tokenizer.eos_id
    slow = SlowKneserNey(list(units(run, "train")), size, 3, eos)
    for split, key in (("valid", "best/val/nll"), ("test", "test/nll")):
        nll = [
            -math.log(slow.prob(token, (START, *unit[:i])[-2:]))
            for unit in units(run, split)
            for i, token in enumerate(unit)
        ]
        assert summary[key] == pytest.approx(math.fsum(nll) / len(nll), rel=1e-6)
        perplexity = summary[key.replace("nll", "perplexity")]
        assert perplexity == pytest.approx(math.exp(summary[key]))
    assert summary["tokens"] == sum(map(len, units(run, "train")))
    assert summary["num_parameters"] == sum(map(len, trained.head.parameters()))
    assert run.status()["status"] == "finished"
    rows = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    assert [row["tokens"] for row in rows] == [summary["tokens"]] * 2
    assert rows[0]["val/nll"] == summary["val/nll"] == summary["best/val/nll"]
    assert rows[1]["test/nll"] == summary["test/nll"]
    (sample,) = (run.path / "samples.jsonl").read_text().splitlines()
    assert json.loads(sample)["prompt"] == "The"
    report = json.loads((run.path / "counted.json").read_text())
    assert [row["discounts"] for row in report] == [
        pytest.approx(discounts) for discounts in slow.discounts
    ]


def test_evaluate_has_the_figures_of_the_training(run, capfd):
    outputs = f"outputs={run.path.parents[1]}"
    found = json_of(capfd, "evaluate", "one", outputs, "protocol=[document,stream,sentence]")
    nll = {each["protocol"]: each["nll"] for each in found["results"]}
    assert nll["document"] == run.read("summary.json")["test/nll"]
    assert len(set(nll.values())) == 3
    lanes = json_of(capfd, "evaluate", "one", outputs, "num_lanes=1")["results"][0]["nll"]
    assert lanes == pytest.approx(nll["document"], rel=1e-12)


def test_score_and_generate(run, capfd, place):
    outputs = f"outputs={run.path.parents[1]}"
    scored = json_of(capfd, "score", "one", outputs, "text=the cat sat")
    assert [token["piece"].strip() for token in scored["tokens"]][:3] == ["the", "cat", "sat"]
    nll = lmkit.load(run.path).nll("the cat sat")
    assert scored["nll"] == pytest.approx(nll, rel=1e-6)
    (place / "items.csv").write_text("sentence\nthe cat sat\na dog ran\n")
    table = place / "scores.csv"
    items = place / "items.csv"
    assert cli.main(["score", "one", outputs, f"table={items}", f"out={table}"]) == 0
    assert len(table.read_text().splitlines()) == 7
    trained = lmkit.load(run.path)
    texts = trained.generate("the", num_tokens=8, num_samples=2, seed=5)
    assert texts == [trained.generate("the", num_tokens=8, seed=s)[0] for s in (5, 6)]
    assert set(" ".join(texts).split()) <= set(WORDS)


def test_a_suite_beside_a_network(run, capfd, place):
    lstm = make_run(place / "networks")
    (place / "pairs.csv").write_text(
        "good,bad\nthe cat sat .,cat the . sat\na dog ran .,ran . dog a\n"
    )
    found = json_of(
        capfd,
        *("evaluate", "one", f"outputs={run.path.parents[1]}", "suite=table"),
        *(f"path={place / 'pairs.csv'}", f"others={lstm.path}"),
    )
    assert [each["run"] for each in found["runs"]] == ["grams/one", f"tiny/{lstm.id}"]
    assert found["num_items"] == 2


def test_an_arpa_file_and_back(run, capfd, place):
    outputs = f"outputs={run.path.parents[1]}"
    path = place / "one.arpa.gz"
    made = json_of(capfd, "export", "one", outputs, "format=arpa", f"path={path}")
    assert made["num_ngrams"][0] == lmkit.load(run.path).tokenizer.vocabulary_size + 1
    imported = json_of(capfd, "import", str(path), outputs, "run_id=back")
    text = "the cat sat .\na dog"
    expected = [token.nll for token in lmkit.load(run.path).score(text, protocol="document")]
    trained = lmkit.load(Path(imported["run"]))
    assert [token.nll for token in trained.score(text, protocol="document")] == expected
    assert trained.protocol == "sentence"
    said = ("run_id=articles", "++data.protocol=document")  # as Hydra writes a key that is there
    imported = json_of(capfd, "import", str(path), outputs, *said)
    assert lmkit.load(Path(imported["run"])).protocol == "document"
    assert cli.main(["import", str(path), outputs, "unk=x"]) == 2
    assert "unk=: " in capfd.readouterr().err


def test_a_try_writes_no_model(settings, place):
    assert cli.main(["train", *settings, "run_id=try", "debug=fast_dev_run"]) == 0
    tried = place / "outputs" / "grams" / "try"
    assert not (tried / "counted.json").exists()
    assert not list(tried.glob("checkpoints/*.ckpt"))


@pytest.mark.parametrize("format", ["huggingface", "onnx", "safetensors"])
def test_formats_of_networks_refuse_it(run, format, capfd, tmp_path):
    outputs, path = f"outputs={run.path.parents[1]}", tmp_path / "model"
    assert cli.main(["export", "one", outputs, f"format={format}", f"path={path}"]) == 2
    assert f"format={format} knows networks, and the model is NGram" in capfd.readouterr().err
    assert not path.exists()


def test_it_has_no_steps_to_verify(run, capfd):
    assert cli.main(["verify", "one", f"outputs={run.path.parents[1]}"]) == 2
    assert "grams/one was counted: it has no steps to try" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("argument", "mistake"),
    [
        ("head=full", "model=NGram and head=FullSoftmax do not belong together: a head of tables"),
        ("trainer.devices=2", "model=NGram is counted by one process, and there are 2"),
        ("model.order=8", "model.order=8: must be at least 1 and at most 7"),
        ("model.dropout=0.1", "model.dropout is not a key of lmkit.model.NGram"),
        ("model.prune=[1]", "model.prune=[1]: the first, of single tokens, must be 0"),
    ],
)
def test_mistakes(settings, argument, mistake, capfd):
    assert cli.main(["train", *settings, argument, "run_id=wrong"]) == 2
    assert mistake in capfd.readouterr().err


def test_a_network_has_no_head_of_tables(settings, capfd):
    assert cli.main(["train", *settings, "model=lstm", "head=ngram", "~model.order"]) == 2
    assert "model=LSTM and head=NGramTables do not belong together" in capfd.readouterr().err


def test_it_is_no_beginning_of_another_training(run, settings, capfd):
    given = [line for line in settings if not line.startswith(("model", "tokenizer"))]
    assert cli.main(["train", *given, f"init={run.path}", "run_id=wrong"]) == 2
    assert "NGram is counted from nothing; leave init out" in capfd.readouterr().err


def test_settings_without_effect_are_named(settings, caplog, place):
    caplog.set_level(logging.WARNING)
    more = ["optimizer=sgd", "optimizer.lr=3", "trainer.max_epochs=9", "run_id=idle"]
    assert cli.main(["train", *settings, *more, "trainer.precision=32-true"]) == 0
    (said,) = [each for each in warned(caplog) if "no effect" in each]
    assert said == (
        "the model is counted once, over all of train: no effect of "
        "['optimizer=sgd', 'optimizer.lr=3', 'trainer.max_epochs=9']"
    )


def test_discounts_that_cannot_be_estimated_are_told(settings, caplog, place):
    """Of one line every n-gram occurs once."""
    (place / "line.txt").write_text("the cat sat on a mat\n")
    caplog.set_level(logging.WARNING)
    files = [
        f"data.path={place / 'line.txt'}",
        "data.test_fraction=0",
        "data.valid_fraction=0",
        "run_id=line",
    ]
    assert cli.main(["train", *settings, *files, "model.order=2"]) == 0
    told = "its discounts are set, not estimated: 0.5, 1, 1.5"
    assert [each for each in warned(caplog) if "order" in each] == [
        f"order {order}: no n-gram has an adjusted count of 2; {told}" for order in (1, 2)
    ]


def test_a_finished_run_stays_and_one_without_its_end_goes_on(run, settings, capfd):
    before = (run.path / "summary.json").read_bytes()
    assert cli.main(["train", *settings, "run_id=one"]) == 0
    assert "grams/one has been counted and stays as it is" in capfd.readouterr().err
    assert (run.path / "summary.json").read_bytes() == before
    # As if it had been killed when the checkpoint was written, but nothing was tested.
    again = [line for line in settings if not line.startswith("name=")]
    assert cli.main(["train", *again, "name=cut", "run_id=one"]) == 0
    cut = Run(run.path.parents[1] / "cut" / "one")
    expected = cut.read("summary.json")
    (cut.path / "summary.json").unlink()
    cut.write_status("running")
    checkpoint = cut.path / "checkpoints" / "step-000000000.ckpt"
    written = checkpoint.stat().st_mtime_ns
    assert cli.main(["train", *again, "name=cut", "run_id=one"]) == 0
    assert checkpoint.stat().st_mtime_ns == written
    assert cut.read("summary.json")["test/nll"] == expected["test/nll"]


def test_a_preset_of_a_network_takes_it_and_leaves_its_sizes_out(settings, capfd):
    command = ["doctor", "experiment=document", *settings, "probe=false"]
    assert cli.main(command) == 0
    assert cli.main([*command, "model.hidden_size=9"]) == 2
    assert "model.hidden_size is not a key of lmkit.model.NGram" in capfd.readouterr().err


def test_doctor_trains_nothing(settings, capfd):
    found = json_of(capfd, "doctor", *settings)
    assert found["training"].keys() == {"tokens"}
