"""Whole trainings by the command line, in real processes, stopped and killed for real."""

import json
import shutil
import signal
from pathlib import Path

import pytest
import yaml
from compiled import needs_kernels
from journey import LIMIT, assert_same_state, last, lmkit, rows, start, wait_for_rows

from lmkit import cli
from lmkit.run import Run


def test_a_run_leaves_its_directory_and_says_what_to_type_next(finished):
    run, done = finished
    files = {path.name for path in run.iterdir()}
    assert files >= {
        *("config.yaml", "overrides.yaml", "environment.json", "data.json", "tokenizer.json"),
        *("metrics.jsonl", "samples.jsonl", "summary.json", "status.json", "checkpoints"),
    }
    summary = json.loads((run / "summary.json").read_text())
    assert summary.keys() >= {
        *("val/nll", "val/perplexity", "test/nll", "test/perplexity", "best/val/nll"),
        *("tokens_per_second", "peak_memory_bytes", "num_parameters", "seconds"),
    }
    assert json.loads((run / "status.json").read_text())["status"] == "finished"
    logged = rows(run)
    assert {"train/nll", "lr", "train/grad_norm"} <= logged[0].keys()
    assert logged[0].keys() >= {"step", "epoch", "tokens"}
    assert [row["epoch"] for row in logged if "val/nll" in row] == [0, 1, 2]
    assert logged[-1]["test/nll"] == summary["test/nll"]
    assert summary["best/val/nll"] == pytest.approx(
        min(row["val/nll"] for row in logged if "val/nll" in row)
    )
    assert len((run / "samples.jsonl").read_text().splitlines()) == 3
    assert f"{summary['test/perplexity']:.2f}" in done.stdout
    assert "lmkit generate whole prompt=" in done.stdout
    assert "lmkit dashboard\n" in done.stdout
    assert last(run)["state_dict"].keys() >= {"model.embedding.weight", "head.bias"}
    assert "Warning" not in done.stderr


def test_data_json_counts_what_was_read(finished, text):
    data = json.loads((finished[0] / "data.json").read_text())
    splits = data["splits"]
    paragraphs = text.read_text().removesuffix("\n").split("\n\n")
    assert sum(split["num_documents"] for split in splits.values()) == len(paragraphs)
    counted = sum(split["num_tokens"] for split in splits.values())
    assert counted == sum(len(paragraph) + 1 for paragraph in paragraphs)


def test_killed_and_resumed_is_the_same_run_to_the_bit(finished, settings, tmp_path):
    whole, _ = finished
    process = start("train", *settings, "run_id=cut", cwd=tmp_path)
    run = tmp_path / "outputs" / "tiny" / "cut"
    wait_for_rows(process, run, 25)  # in the second epoch: there is a checkpoint to go on from
    process.kill()
    process.communicate(timeout=LIMIT)
    assert 0 < last(run)["global_step"] < last(whole)["global_step"]
    done = last(run)["global_step"]
    status = lmkit("resume", "cut", cwd=tmp_path)
    assert f"\ngoing on from step {done:,} (epoch " in status.stderr
    assert f") of tiny/cut in {run}\n" in status.stderr
    assert rows(run) == rows(whole), status.stderr
    assert_same_state(last(run), last(whole))
    assert (run / "samples.jsonl").read_text() == (whole / "samples.jsonl").read_text()


@needs_kernels
def test_an_lstm_goes_on_bit_for_bit_with_another_number_of_threads(finished, settings, tmp_path):
    whole, done = finished
    assert "the training will take about" in done.stderr
    process = start("train", *settings, "run_id=cut", "threads=3", cwd=tmp_path)
    run = tmp_path / "outputs" / "tiny" / "cut"
    wait_for_rows(process, run, 25)
    process.kill()
    process.communicate(timeout=LIMIT)
    assert [Run(path).config()["threads"] for path in (run, whole)] == [3, 1]
    resumed = lmkit("resume", "cut", "threads=2", cwd=tmp_path)
    assert "what is left of the training will take about" in resumed.stderr
    assert "with 2 threads" in resumed.stderr
    assert rows(run) == rows(whole)
    assert_same_state(last(run), last(whole))


def test_sigterm_saves_says_how_to_go_on_and_exits_143(finished, settings, tmp_path):
    whole, _ = finished
    process = start("train", *settings, "run_id=cut", cwd=tmp_path)
    run = tmp_path / "outputs" / "tiny" / "cut"
    wait_for_rows(process, run, 3)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=LIMIT)
    assert process.returncode == 143, err
    assert "stopped by SIGTERM; to go on: lmkit resume cut" in err
    assert json.loads((run / "status.json").read_text())["status"] == "stopped"
    lmkit("train", *settings, "run_id=cut", cwd=tmp_path)  # the same command continues it
    assert rows(run) == rows(whole)
    assert_same_state(last(run), last(whole))


def test_a_run_that_had_ended_keeps_what_it_came_to(finished, tmp_path):
    run = shutil.copytree(finished[0].parents[2], tmp_path / "again", symlinks=True)
    run = run / "outputs" / "tiny" / "whole"
    lmkit("resume", str(run), cwd=tmp_path)
    before, after = (
        json.loads((place / "summary.json").read_text()) for place in (finished[0], run)
    )
    timed = ("seconds", "peak_memory_bytes")
    assert {k: v for k, v in after.items() if k not in timed} == {
        k: v for k, v in before.items() if k not in timed
    }


def test_another_model_under_the_same_id_is_refused(finished, settings):
    run, _ = finished
    place = run.parents[2]
    arguments = [*settings, "run_id=whole", "model.hidden_size=16", "model.tie_weights=false"]
    done = lmkit("train", *arguments, cwd=place, code=2)
    assert "model.hidden_size: 12 there, 16 now" in done.stderr
    assert json.loads((run / "status.json").read_text())["status"] == "finished"


@pytest.mark.parametrize("number", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_several_processes_are_the_same_run(settings, tmp_path, number):
    """Same windows, masks and global token mean: losses agree while rounding has not grown."""
    common = [*settings, "trainer.max_steps=50"]
    lmkit("train", *common, "run_id=one", cwd=tmp_path)
    lmkit(
        "train",
        *common,
        "trainer=ddp_cpu",
        f"trainer.devices={number}",
        "run_id=more",
        cwd=tmp_path,
    )
    one, more = (rows(tmp_path / "outputs" / "tiny" / run) for run in ("one", "more"))
    assert [row["step"] for row in one] == [row["step"] for row in more]
    for a, b in zip(one, more, strict=True):
        assert a["tokens"] == b["tokens"]
        for key in ("train/nll", "val/nll", "test/nll"):
            assert a.get(key) == pytest.approx(b.get(key), abs=1e-5)


def test_bits_per_byte_come_with_a_tokenizer_that_loses_nothing(settings, tmp_path):
    arguments = [*settings, "tokenizer=bytes", "trainer.max_steps=3", "run_id=bytes"]
    lmkit("train", *arguments, cwd=tmp_path)
    run = tmp_path / "outputs" / "tiny" / "bytes"
    summary = json.loads((run / "summary.json").read_text())
    test = json.loads((run / "data.json").read_text())["splits"]["test"]
    expected = summary["test/nll"] * test["num_tokens"] / test["num_bytes"] / 0.6931471805599453
    assert summary["test/bits_per_byte"] == pytest.approx(expected, rel=1e-5)


def tree(directory: Path) -> dict[str, bytes]:
    """Every file below by its name, and what it holds."""
    files = (file for file in directory.rglob("*") if file.is_file())
    return {str(file.relative_to(directory)): file.read_bytes() for file in files}


@pytest.mark.parametrize("devices", [(), ("trainer=ddp_cpu", "trainer.devices=2")])
def test_a_text_that_cannot_be_read_leaves_no_run_behind(tmp_path, capsys, devices):
    text = tmp_path / "text.txt"
    text.write_bytes(b"a word\n\nanother word \xff\n" * 50)
    outputs = tmp_path / "outputs"
    argv = ["data=files", f"data.path={text}", "data.unit=paragraph", f"outputs={outputs}"]
    assert cli.main(["train", *argv, *devices]) == 2
    assert f"{text} is not UTF-8" in capsys.readouterr().err
    assert not outputs.exists()


def test_a_run_whose_text_has_changed_is_refused_and_left_as_it_was(
    finished, text, tmp_path, capsys
):
    shutil.copytree(finished[0].parents[1], tmp_path / "outputs", symlinks=True)
    run = tmp_path / "outputs" / "tiny" / "whole"
    changed = tmp_path / "text.txt"
    changed.write_text(text.read_text() + "\n\nZebras and a quagga.\n")
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["data"]["path"] = str(changed)
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    before = tree(run)
    assert cli.main(["resume", str(run), "trainer.max_epochs=4"]) == 2
    assert "cannot go on: it was trained with another vocabulary than the tokenizer has now" in (
        capsys.readouterr().err
    )
    assert tree(run) == before


def test_a_run_that_has_come_further_is_left_as_it_was(finished, capsys):
    before = tree(finished[0])
    last_manifest = (finished[0] / "checkpoints" / "last.ckpt").resolve().with_suffix(".json")
    assert json.loads(last_manifest.read_text())["epochs_done"] == 3
    assert cli.main(["resume", str(finished[0]), "trainer.max_epochs=2"]) == 2
    assert "trainer.max_epochs=2 but the run has come further" in capsys.readouterr().err
    assert tree(finished[0]) == before
