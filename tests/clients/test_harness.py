"""lmkit's model of lm-evaluation-harness, on tasks of local files: its numbers are our own."""

import json
import math
import subprocess
import sys
import warnings

import pytest
from trained_run import load, make_run

from lmkit import cli

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pytest.importorskip("lm_eval")
    from lm_eval.api.instance import Instance

    from lmkit.export.harness import LmkitLM

PAIRS = [
    ("the cat saw a dog .", "the cat saw a dogs ."),
    ("a zebra ran .", "a zebra lay the ."),
    ("the mat lay there .", "the mat there lay ."),
]
# BLiMP as the harness has it: two texts after an empty context, the likelier one counts.
TASK = """
task: pairs
dataset_path: json
dataset_kwargs: {data_files: {test: PATH}}
output_type: multiple_choice
test_split: test
doc_to_text: ""
doc_to_target: 0
doc_to_choice: "{{[good, bad]}}"
target_delimiter: ""
metric_list: [{metric: acc}]
"""
ROLLING = """
task: texts
dataset_path: json
dataset_kwargs: {data_files: {test: PATH}}
output_type: loglikelihood_rolling
test_split: test
doc_to_text: ""
doc_to_target: "{{good}}"
metric_list: [{metric: word_perplexity}, {metric: byte_perplexity}]
"""


@pytest.fixture(scope="module", params=["word", "bpe"])
def run(request, tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("harness") / "outputs", "lstm", request.param)


@pytest.fixture(autouse=True)
def libraries_may_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def nll(run, text):
    """Of a text in nats, without its end."""
    return sum(token.nll for token in load(run).score(text, protocol="document")[:-1])


def requests(kind, *arguments):
    return [Instance(kind, {}, given, i) for i, given in enumerate(arguments)]


def test_likelihoods_and_greedy_continuations(run):
    trained = load(run)
    model = LmkitLM(trained)
    greedy = trained.generate("the cat", num_tokens=3, temperature=0)[0]
    pairs = [
        ("the cat", " saw a dog"),
        ("", "a zebra"),
        ("the cat", greedy.removeprefix("the cat")),
    ]
    found = model.loglikelihood(requests("loglikelihood", *pairs))
    for (context, continuation), (log_prob, is_greedy) in zip(pairs, found, strict=True):
        expected = (nll(run, context) if context else 0.0) - nll(run, context + continuation)
        assert log_prob == pytest.approx(expected, abs=1e-4)
        assert is_greedy == (context + continuation == greedy)


def test_a_long_text_is_read_as_a_whole(run):
    """5,000 words: twice what the harness reads of a model of Hugging Face at once."""
    text = " ".join(["the cat saw a dog"] * 1000)
    (found,) = LmkitLM(load(run)).loglikelihood_rolling(requests("loglikelihood_rolling", (text,)))
    assert found == pytest.approx(-nll(run, text), rel=1e-5)


def test_generation_ends_where_the_task_says(run):
    model = LmkitLM(load(run))
    how = {"max_gen_toks": 12, "do_sample": False}
    (whole,) = model.generate_until(requests("generate_until", ("the cat", {"until": [], **how})))
    assert f"the cat{whole}" == load(run).generate("the cat", num_tokens=12, temperature=0)[0]
    middle = whole[len(whole) // 2 :][:3]
    (cut,) = model.generate_until(requests("generate_until", ("the cat", {"until": middle, **how})))
    assert cut == whole.partition(middle)[0] != whole


def write_tasks(place):
    rows = [{"good": good, "bad": bad} for good, bad in PAIRS]
    (place / "pairs.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (place / "tasks").mkdir(exist_ok=True)
    for name, task in (("pairs", TASK), ("texts", ROLLING)):
        text = task.replace("PATH", str(place / "pairs.jsonl"))
        (place / "tasks" / f"{name}.yaml").write_text(text)


def test_tasks_of_local_files(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    write_tasks(tmp_path)
    arguments = ["harness", str(run.path), "tasks=[pairs,texts]", "include_path=tasks"]
    assert cli.main(arguments) == 0
    assert cli.main([*arguments, "limit=1"]) == 0  # beside the other, not in its place
    file = run.path / "harness" / "pairs+texts-best.json"
    assert len(list((run.path / "harness").iterdir())) == 2
    results = json.loads(file.read_text())["results"]
    correct = [nll(run, good) < nll(run, bad) for good, bad in PAIRS]
    assert results["pairs"]["acc,none"] == pytest.approx(sum(correct) / len(correct))
    total = sum(nll(run, good) for good, _ in PAIRS)
    num_words = sum(len(good.split()) for good, _ in PAIRS)
    expected = math.exp(total / num_words)
    assert results["texts"]["word_perplexity,none"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tasks=none_such"], "tasks=none_such: the harness has no such task; name its"),
        (["tasks=pairs", "optimizer.lr=1"], "optimizer.lr=1: lmkit harness reads kernels"),
        (["tasks=pairs", "include_path=none"], "include_path=none is no directory"),
        (["tasks=pairs", "limit=0"], "limit=0: must be at least 1"),
        ([], "tasks is required"),
    ],
)
def test_mistakes(run, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["harness", str(run.path), *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_task_whose_data_are_not_there(run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_tasks(tmp_path)
    (tmp_path / "pairs.jsonl").unlink()
    arguments = ["harness", str(run.path), "tasks=pairs", "include_path=tasks"]
    assert cli.main(arguments) == 2
    assert "error: tasks=pairs: the harness cannot run it: " in capsys.readouterr().err


def test_the_harness_own_command_knows_it(run, tmp_path):
    """Where the module is imported, `--model lmkit` is a run."""
    write_tasks(tmp_path)
    code = "import lmkit.export.harness; from lm_eval.__main__ import cli_evaluate; cli_evaluate()"
    outputs = run.path.parents[1]
    model = f"run={run.name}/{run.id},outputs={outputs}"
    command = ["--model", "lmkit", "--model_args", model, "--tasks", "pairs"]
    place = ["--include_path", "tasks", "--output_path", "results"]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, *command, *place],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    correct = sum(nll(run, good) < nll(run, bad) for good, bad in PAIRS)
    assert f"{correct / len(PAIRS):.4f}" in done.stdout
