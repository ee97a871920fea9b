"""benchmarks/gpu.sh on the CPU, with sizes that are tiny: its parts, its JSON, going on."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from journey import LIMIT

ROOT = Path(__file__).parents[2]
TINY = ["accelerator=cpu", "shapes=tiny", "precisions=32-true", "steps=10", "rounds=2"]


def call(*arguments: str, code: int = 0) -> str:
    done = subprocess.run(
        ["bash", str(ROOT / "benchmarks" / "gpu.sh"), *arguments],
        env={**os.environ, "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        timeout=5 * LIMIT,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def corpus(tmp_path_factory, text: Path) -> Path:
    """Files as WikiText's."""
    place = tmp_path_factory.mktemp("wikitext")
    articles = [f" = {n} = \n{part}\n" for n, part in enumerate(text.read_text().split("\n\n"))]
    for split, some in (("train", articles), ("valid", articles[:20]), ("test", articles[:20])):
        (place / f"{split}.txt").write_text("".join(some))
    return place


def figures(place: Path) -> dict:
    document = json.loads((place / "gpu.json").read_text())
    assert document["machine"]["accelerator"] == "cpu"
    assert document["machine"]["torch"]
    for figure in document["figures"].values():
        assert figure["commands"]
        assert figure["seconds"] >= 0
        assert figure["machine"] == document["machine"]
    return document["figures"]


def part(name: str, place: Path, *more: str, code: int = 0) -> str:
    return call(name, *TINY, f"work={place}", f"json={place / 'gpu.json'}", *more, code=code)


def test_what_is_no_part_is_refused(tmp_path):
    parts = "tests or processes or resume or speed or curve or recipe"
    told = f"{parts}, with path=DIR for all but tests"
    assert told in call("everything", code=2)
    assert told in part("speed", tmp_path, code=2)
    assert not (tmp_path / "gpu.json").exists()


def test_a_part_is_done_once_and_the_json_is_merged(tmp_path):
    other = {"commands": ["true"], "done": True, "seconds": 0, "values": 1}
    place = tmp_path / "gpu.json"
    place.write_text(json.dumps({"machine": {}, "figures": {"other": other}}))
    # There is no time: nothing is begun, and the next call is told.
    assert "call again" in part("tests", tmp_path, "seconds=0", code=1)
    assert "tests: done" in part("tests", tmp_path)
    document = json.loads(place.read_text())
    assert document["figures"]["other"] == other
    values = document["figures"]["tests"]["values"]
    assert values["failures"] == values["errors"] == 0
    assert values["tests"] > 20
    assert part("tests", tmp_path).strip() == "tests: is there already"


@pytest.mark.slow
def test_two_processes_have_the_losses_of_one(tmp_path, corpus):
    part("processes", tmp_path, f"path={corpus}")
    values = figures(tmp_path)["processes, two over gloo"]["values"]
    assert len(values["losses"]) == len(values["alone"]) == 10
    assert 0 < values["largest_difference"] < 1e-5 or values["losses"] == values["alone"]


@pytest.mark.slow
def test_a_killed_run_resumes(tmp_path, corpus):
    part("resume", tmp_path, f"path={corpus}", "steps=200")
    values = figures(tmp_path)["resume"]["values"]
    assert 0 < values["killed_after_step"] < values["steps"] == 200


@pytest.mark.slow
def test_speed_is_a_figure_for_each_side(tmp_path, corpus):
    part("speed", tmp_path, f"path={corpus}")
    values = figures(tmp_path)["speed, tiny, 32-true"]["values"]
    assert set(values["sides"]) == {"plain PyTorch", "lmkit", "plain PyTorch, bf16 autocast"}
    assert set(values["gemm_flops_per_second"]) == {"torch.float32", "torch.bfloat16"}
    for side in values["sides"].values():
        assert len(side["rounds"]) == 2
        assert 0 < side["of_bf16_gemm"] < 1


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_curve_goes_on_in_the_next_call(tmp_path, corpus):
    metrics = tmp_path / "outputs" / "gpu" / "curve" / "metrics.jsonl"
    while not (metrics.exists() and metrics.read_text()):  # a busy machine may take several calls
        part("curve", tmp_path, f"path={corpus}", "seconds=60", code=1)
    first = figures(tmp_path)["curve"]
    before = first["values"]["rows"]
    longer = before[-1]["seconds"] + 2
    part("curve", tmp_path, f"path={corpus}", f"curve_seconds={round(longer)}")
    second = figures(tmp_path)["curve"]
    assert (first["done"], second["done"]) == (False, True)
    assert second["values"]["rows"][: len(before)] == before
    assert second["values"]["rows"][-1]["seconds"] >= round(longer)
    assert len(second["commands"]) == len(first["commands"]) + 1
    assert second["commands"][-1].endswith("lmkit resume curve")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_reproduction_is_stopped_and_goes_on(tmp_path, corpus):
    recipe = [f"path={corpus}", "recipe=pytorch_examples_200_tied"]
    assert "call again" in part("recipe", tmp_path, *recipe, "seconds=35", code=1)
    part("recipe", tmp_path, *recipe)
    found = figures(tmp_path)
    values = found["recipe, pytorch_examples_200_tied"]["values"]
    assert values["record"]["verdict"] == "other settings"
    assert [row["epoch"] for row in values["rows"] if "val/nll" in row] == [0, 1]
    (plain,) = found["recipe, pytorch_examples_200_tied, cache"]["values"]["results"]
    assert "cache" in {method["method"] for method in plain["methods"]}
    (test,) = (row for row in values["record"]["rows"] if row["paper"] == 100.33)
    assert plain["perplexity"] == pytest.approx(test["ours"], rel=1e-9)
