"""`lmkit evaluate` by the methods of the literature: what it prints, returns and refuses."""

import functools
import json
import shlex

import pytest
from documented import commands, sections
from trained_run import make_run, real_stdout

from lmkit.cli import main
from lmkit.command import Command
from lmkit.commands.evaluate import evaluate
from lmkit.errors import ResultError, UserError
from lmkit.inference import Evaluation
from lmkit.inference.dynamic import DivergedError


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    return tmp_path_factory.mktemp("outputs")


@pytest.fixture(scope="module")
def lstm(outputs):
    return make_run(outputs)


def refused(run, **arguments):
    with pytest.raises(UserError) as error:
        evaluate(run, run.config(), **arguments)
    return str(error.value)


def test_the_plain_figures_stay_as_they_are(lstm):
    protocols = ["document", "stream"]
    plain = evaluate(lstm, lstm.config(), protocol=protocols)
    with_cache = evaluate(lstm, lstm.config(), protocol=protocols, cache=5)
    for one, other in zip(plain["results"], with_cache["results"], strict=True):
        assert "methods" not in one
        same = [key for key in one if key != "tokens_per_second"]
        assert [one[key] for key in same] == [other[key] for key in same]
        (row,) = other["methods"]
        assert (row["method"], row["settings"]) == (
            "cache",
            {"size": 5, "theta": 0.3, "weight": 0.1},
        )
        assert row["nll"] != one["nll"]
        assert row["tokens_per_second"] > 0


def test_the_command_tunes_on_valid_and_prints_both(lstm, capfd):
    words = ["evaluate", str(lstm.path), "protocol=stream", "cache.size=6", "tune=true"]
    words += ["dynamic.rule=sgd", "dynamic.lr=0.01", "dynamic.decay=0"]
    assert main(words) == 0
    out = capfd.readouterr().out
    with real_stdout():
        assert main([*words, "format=json"]) == 0
    result = json.loads(capfd.readouterr().out)
    (measured,) = result["results"]
    on_valid, on_test = measured["tuned"], measured["methods"]
    assert on_valid["split"] == "valid"
    assert [row["method"] for row in on_valid["methods"]] == ["plain", "dynamic", "dynamic+cache"]
    assert [row["method"] for row in on_test] == ["dynamic", "dynamic+cache"]
    assert on_valid["methods"][2]["settings"] == on_test[1]["settings"]
    rows = dict(
        [cell.strip() for cell in line.split("│")[1:3]]
        for line in out.splitlines()
        if line.count("│") == 3
    )
    assert rows["perplexity"] == f"{measured['perplexity']:,.2f}"
    for row in on_test:
        assert rows[f"perplexity, {row['method']}"] == f"{row['perplexity']:,.2f}"
    for row in on_valid["methods"]:
        assert rows[f"nll (nats per token), {row['method']} on valid"] == f"{row['nll']:.5f}"
    settings = on_test[1]["settings"]
    assert out.splitlines()[-1] == (
        f"dynamic+cache under stream: size=6, theta={settings['theta']:.4g}, "
        f"weight={settings['weight']:.4g}, chosen on valid"
    )


def test_what_is_tuned_on_the_split_asked_for_is_measured_once(lstm):
    (measured,) = evaluate(
        lstm, lstm.config(), split="valid", protocol="stream", cache=4, tune=True
    )["results"]
    plain, row = measured["tuned"]["methods"]
    assert measured["methods"] == [row]
    assert plain["nll"] == measured["nll"]


def test_a_setting_that_is_set_stays(lstm, capfd):
    words = ["evaluate", str(lstm.path), "cache.size=4", "cache.theta=0.3", "tune=true"]
    with real_stdout():
        assert main([*words, "format=json"]) == 0
    (measured,) = json.loads(capfd.readouterr().out)["results"]
    assert measured["methods"][0]["settings"]["theta"] == 0.3
    assert measured["methods"][0]["settings"]["weight"] != 0.1
    assert main([*words, "cache.weight=0.1"]) == 2
    message = "tune: no effect with cache.theta, cache.weight set; leave it out"
    assert message in capfd.readouterr().err


def test_a_temperature_is_chosen_on_valid(lstm):
    (measured,) = evaluate(lstm, lstm.config(), temperature=1.0, tune=True)["results"]
    (row,), (_, chosen) = measured["methods"], measured["tuned"]["methods"]
    assert row["method"] == chosen["method"] == "temperature"
    assert row["settings"] == chosen["settings"] != {"value": 1.0}
    (plain,) = evaluate(lstm, lstm.config(), temperature=1.0)["results"]
    assert plain["methods"][0]["nll"] == pytest.approx(plain["nll"], abs=1e-6)


def test_an_ensemble_of_runs(outputs, lstm):
    make_run(outputs, "gru")
    name = "gru-word-document"
    (one,) = evaluate(lstm, lstm.config(), ensemble=name)["results"]
    (two,) = evaluate(lstm, lstm.config(), ensemble=[name], ensemble_weights=[1.0, 0.0])["results"]
    assert one["methods"][0]["settings"] == {"runs": [name], "weights": [0.5, 0.5]}
    assert one["methods"][0]["nll"] != pytest.approx(one["nll"], abs=1e-3)
    assert two["methods"][0]["nll"] == pytest.approx(two["nll"], abs=1e-6)
    other = make_run(outputs, "window", "bytes")
    message = refused(lstm, ensemble=other.id)
    assert message.startswith(
        f"ensemble: tiny/{other.id} has another vocabulary than tiny/{lstm.id}: its tokenizer has "
    )
    assert message.endswith("; name runs that were trained with one tokenizer")
    assert refused(lstm, ensemble=[name, name]) == (
        f"ensemble={name},{name}: name each run once, and not RUN again"
    )
    assert refused(lstm, ensemble="none").startswith("ensemble: ")


@pytest.mark.parametrize("protocol", ["stream", "document"])
def test_each_run_of_an_ensemble_is_read_in_its_own_lanes(tmp_path, protocol):
    """With all the weight, a run has the figure that it has alone."""
    runs = make_run(tmp_path, protocol="stream"), make_run(tmp_path, "gru", protocol=protocol)
    for run, num_lanes in zip(runs, (2, 5), strict=True):
        config = run.config()
        config["data"] |= {"eval_batch_size": num_lanes, "bptt": 4}
        run.write("config.yaml", config)
    one, other = (
        evaluate(run, run.config(), protocol="stream")["results"][0]["nll"] for run in runs
    )
    for weights, expected in (([1.0, 0.0], one), ([0.0, 1.0], other)):
        together = {"ensemble": [runs[1].id], "ensemble_weights": weights}
        (measured,) = evaluate(runs[0], runs[0].config(), **together)["results"]
        assert measured["methods"][0]["num_lanes"] == 2
        assert measured["methods"][0]["nll"] == pytest.approx(expected, abs=1e-6)


DIVERGES = ["dynamic.rule=sgd", "dynamic.lr=1e38", "dynamic.segment=12"]


@pytest.mark.parametrize("protocols", [["sentence", "stream"], ["stream", "sentence"]])
def test_what_was_measured_outlives_weights_that_diverge(lstm, capfd, protocols):
    """No sentence is longer than a segment, so that each is read with the trained weights."""
    words = ["evaluate", str(lstm.path), f"protocol=[{','.join(protocols)}]", *DIVERGES]
    message = (
        "under stream: dynamic: the weights diverged at token 12 with rule=sgd, lr=1e+38, decay=0: "
        "lower lr, or take tune=true in its place"
    )
    assert main(words) == 1
    out, err = capfd.readouterr()
    assert err.splitlines()[-1] == f"error: {message}"
    with real_stdout():
        assert main([*words, "format=json"]) == 1
    printed = capfd.readouterr()
    assert printed.err.splitlines()[-1] == f"error: {message}"
    measured = {each["protocol"]: each for each in json.loads(printed.out)["results"]}
    assert list(measured) == protocols
    (row,) = measured["sentence"]["methods"]
    assert "methods" not in measured["stream"]
    assert message == f"under stream: {measured['stream']['error']}"
    assert "error" not in measured["sentence"]
    rows = {
        cells[0]: cells[1:]
        for line in out.splitlines()
        if len(cells := [cell.strip() for cell in line.split("│")[1:-1]]) == 3
    }
    plain = {name: f"{each['perplexity']:,.2f}" for name, each in measured.items()}
    adapted = {"sentence": f"{row['perplexity']:,.2f}", "stream": "-"}
    assert rows["perplexity"] == [plain[name] for name in protocols]
    assert rows["perplexity, dynamic"] == [adapted[name] for name in protocols]


def failure(run, **arguments):
    with pytest.raises(ResultError) as error:
        evaluate(run, run.config(), **arguments)
    (measured,) = error.value.result["results"]
    assert measured["error"] == str(error.value)
    return measured


def test_the_advice_of_weights_that_diverge_can_be_followed(lstm, monkeypatch):
    """Each remedy but a lower lr is one that was not taken already."""
    stream = {"protocol": "stream", "cache": 4}
    monkeypatch.setattr("lmkit.inference.dynamic.SGD_LR", 1e37)
    measured = failure(lstm, dynamic="sgd", **stream)
    assert measured["error"].endswith("lr=5e+37, decay=0: lower lr, or take tune=true")
    assert measured["perplexity"] > 1
    measured = failure(lstm, dynamic="sgd", **stream, tune=True)
    assert measured["error"].endswith("lr=1e+38, lr=2.5e+38: set a lower lr")
    (plain,) = measured["tuned"]["methods"]
    assert (plain["method"], measured["tuned"]["split"]) == ("plain", "valid")
    assert "methods" not in measured
    monkeypatch.setattr("lmkit.inference.tuning.TRIED_TOKENS", 3)  # after which none is updated
    measured = failure(lstm, dynamic="sgd", **stream, tune=True)
    assert measured["error"].endswith("lr=1e+37, decay=0: lower lr")


def test_what_is_chosen_is_told_where_the_text_makes_the_weights_diverge(lstm, monkeypatch):
    def diverging(self, text, methods):
        raise DivergedError("dynamic: too far")

    monkeypatch.setattr(Evaluation, "measure", diverging)
    measured = failure(lstm, dynamic="sgd", protocol="stream", tune=True)
    assert [row["method"] for row in measured["tuned"]["methods"]] == ["plain", "dynamic"]
    assert measured["error"] == "dynamic: too far"
    assert "methods" not in measured


def test_what_does_not_go_together_is_refused(lstm):
    both = "only cache and dynamic go together; evaluate with each of the others by itself"
    assert refused(lstm, cache=4, mc_dropout=2) == f"mc_dropout with cache: {both}"
    assert refused(lstm, dynamic="sgd", ensemble="x") == f"ensemble with dynamic: {both}"
    assert refused(lstm, cache=4, temperature=1.1) == f"temperature with cache: {both}"
    assert refused(lstm, mc_dropout=2) == (
        "mc_dropout: the model was trained without dropout; leave it out"
    )
    assert refused(lstm, ensemble_weights=[0.5, 0.5]) == (
        "ensemble_weights: no effect without ensemble=; leave it out"
    )
    nothing = "tune: only cache, dynamic, ensemble and temperature have settings to choose"
    assert refused(lstm, tune=True) == refused(lstm, tune=True, mc_dropout=2) == nothing
    assert refused(lstm, tune=True, ensemble="none", ensemble_weights=[0.5, 0.5]) == (
        "tune: no effect with ensemble_weights set; leave it out"
    )
    assert refused(lstm, tune="test", cache=4) == (
        "tune=test: settings that are chosen on the test split say nothing of its text; "
        "tune=true chooses them on valid"
    )
    assert refused(lstm, tune="dev", cache=4) == (
        "tune needs the split dev: the data has train, valid, test"
    )
    suite = {"suite": "lines", "path": "pairs.txt"}
    assert refused(lstm, **suite, cache=4, tune=True) == (
        "cache, tune: no effect with suite=lines; leave it out"
    )


@pytest.mark.parametrize(
    ("words", "mistake"),
    [
        (["cache=0"], "cache=0: must be at least 1"),
        (["cache.theta=1"], "cache.size is required; set cache.size=..."),
        (["cache.size=3", "cache.weight=1"], "cache.weight=1: must be at least 0 and below 1"),
        (["dynamic=adam"], "dynamic=adam: expected rms | sgd | a mapping | null, found text"),
        (
            ["dynamic=sgd", "dynamic.lr=1"],
            "dynamic=sgd and dynamic.lr=1: name the first by its key too, as dynamic.KEY=...",
        ),
        (["cache.sise=3"], "cache.sise is not a key; did you mean cache.size?"),
    ],
)
def test_mistakes_in_the_settings(lstm, words, mistake, capfd):
    assert main(["evaluate", str(lstm.path), *words]) == 2
    assert mistake in capfd.readouterr().err


def test_all_checkpoints_have_a_curve_for_each_method(lstm):
    result = evaluate(lstm, lstm.config(), checkpoint="all", protocol="stream", cache=5)
    (point,) = result["checkpoints"]
    (measured,) = point["result"]["results"]
    assert [row["method"] for row in measured["methods"]] == ["cache"]


@pytest.mark.parametrize("command", commands(sections("evaluation.md")[""]))
def test_the_commands_of_the_page_are_understood(lstm, command, monkeypatch):
    words = shlex.split(command, comments=True)[1:]
    assert words[:2] == ["evaluate", "latest"]
    called, load = [], Command.load

    def stub(command):
        return functools.wraps(load(command))(lambda *_, **keys: called.append(keys))

    monkeypatch.setattr(Command, "load", stub)
    assert main(["evaluate", str(lstm.path), *words[2:]]) == 0
    assert called
