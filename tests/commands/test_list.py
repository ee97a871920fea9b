"""`lmkit list` of an option, `--cfg job`: every key with its type, its default and what it is."""

import json
import re

import pytest
import yaml
from trained_run import real_stdout

from lmkit import cli
from lmkit.config.compose import compose
from lmkit.config.full_config import full_config
from lmkit.config.keys import node_keys, nodes


@pytest.fixture
def listed(capfd):
    def run(*argv: str) -> str:
        assert cli.main(["list", *argv]) == 0
        return capfd.readouterr().out

    return run


def test_the_keys_of_an_option(listed):
    out = listed("tokenizer=word", "data=files")
    assert out.splitlines()[0] == (
        "tokenizer=word  Words between spaces; the vocabulary is that of the train split"
    )
    rows = dict(line.strip().split(maxsplit=1) for line in out.splitlines() if line[:2] == "  ")
    assert rows["tokenizer.lower=false"].startswith("(bool) ")
    assert rows["data.path=..."].startswith("(str | list[str]) a file, directory, glob or list")
    assert rows["data.batch_size=20"] == (
        "(int) lanes that are trained on at a time, over all processes"
    )


def test_a_group_has_its_options_and_the_keys_of_the_one_that_train_takes(listed):
    out = listed("model")
    assert re.search(r"\n  gru +Gated recurrent units \(Cho et al. 2014\)\n", out)
    assert "keys, where none is chosen, of lmkit.model.LSTM\n" in out
    assert "  model.dropout=0.2 " in out  # that of the YAML, before the signature's 0


def test_the_same_as_data(listed):
    with real_stdout():
        out = listed("data=jsonl", "logger=wandb", "format=json")
    found = json.loads(out)
    assert found["data=jsonl"]["keys"]["data.path"]["required"] is True
    assert found["data=jsonl"]["keys"]["data.field"] == {
        "type": "str",
        "default": "text",
        "required": False,
        "line": "the name of the field that holds the text",
    }
    assert found["logger=wandb"]["keys"]["logger.wandb.mode"]["default"] == "offline"


def test_a_preset_shows_what_it_sets(listed):
    assert "max_epochs: 3" in listed("experiment=quick")
    assert "optimizer.lr: tag(log, interval(3e-4, 1e-2))" in listed("sweep=lstm")


@pytest.mark.parametrize(
    "argv", [[], ["model=elman", "optimizer=adamw", "scheduler=cosine", "logger=wandb"]]
)
def test_the_full_config_holds_the_composed_one_and_every_default(argv):
    text = full_config([*argv, "--cfg", "job"], "train")
    full, config = yaml.safe_load(text), compose(argv).config
    keys = node_keys(config)
    config["outputs"] = "outputs"  # `compose` makes it absolute
    objects = {**dict(nodes(config)), "": config}
    for path, node in objects.items():
        shown = full
        for part in filter(None, path.split(".")):
            shown = shown[part]
        for name, value in node.items():
            if not isinstance(value, dict):
                assert shown[name] == value, (path, name)
        for key, found in keys.items():
            if key.rpartition(".")[0] == path and key.rpartition(".")[2] not in node:
                line = f"{key.rpartition('.')[2]}: "
                assert line in text
                assert shown.get(key.rpartition(".")[2]) == found.value


def test_a_package_of_the_full_config():
    text = full_config(["optimizer=sgd", "--cfg", "job", "--package", "optimizer"], "train")
    assert text.startswith("# @package optimizer\n_target_: torch.optim.SGD\nlr: 20\n")
    assert "momentum: 0  # by default" in text.splitlines()
    text = full_config(["model.embedding_size=${model.hidden_size}", "--resolve"], "train")
    assert yaml.safe_load(text)["model"]["embedding_size"] == 200


def test_a_config_of_the_users_to_start_from(tmp_path, capsys):
    (tmp_path / "mine.yaml").write_text("defaults: [train, _self_]\nmodel: {hidden_size: 123}\n")
    flags = ["--config-dir", str(tmp_path), "--config-name", "mine"]
    assert compose(flags).config["model"]["hidden_size"] == 123
    assert cli.main(["train", *flags, "--cfg", "job", "--package", "model.hidden_size"]) == 0
    assert capsys.readouterr().out == "# @package model.hidden_size\n123\n"
    wrong = ["--config-dir", str(tmp_path), "--config-name", "mien"]
    for command in (["train"], ["doctor"], ["train", "-m", "seed=1,2"], ["train", "--cfg", "job"]):
        assert cli.main([*command, *wrong]) == 2
        message = "--config-name=mien: no such config; did you mean mine?"
        assert message in capsys.readouterr().err


def test_a_run_has_its_own_config(tmp_path, capsys):
    run = tmp_path / "a1"
    (run / "checkpoints").mkdir(parents=True)
    (run / "config.yaml").write_text("{}")
    assert cli.main(["generate", str(run), "--config-name", "mine"]) == 2
    assert "--config-name=mine: the command starts from the config of its run" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("allowed", "remedy"),
    [
        ("", "; if nowhere is a package that you trust: export LMKIT_ALLOW=nowhere"),
        ("nowhere", "; it must be installed, or lie in the working directory"),
    ],
)
def test_a_class_that_is_not_found_is_named(listed, tmp_path, monkeypatch, caplog, allowed, remedy):
    monkeypatch.setenv("LMKIT_ALLOW", allowed)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.yaml").write_text("# Mine\n_target_: nowhere.Cell\n")
    assert listed("model=mine", f"--config-dir={tmp_path}") == "model=mine  Mine\n"
    (record,) = caplog.records
    assert record.getMessage() == f"nowhere.Cell is not found, nor what keys it has{remedy}"
