"""Every YAML that ships composes and passes the check, which knows every key it holds."""

import io
import json
from functools import cache
from pathlib import Path

import pytest
import yaml

from lmkit.config import loggers
from lmkit.config.check import Root, check
from lmkit.config.compose import compose
from lmkit.config.groups import CONF, group_options, purpose, recipe_names
from lmkit.config.targets import SLOTS
from lmkit.corpus import Files
from lmkit.store import prepare
from lmkit.system import hardware
from lmkit.tokenizer import Bytes

GROUPS = group_options([CONF])
# What `lmkit sweep` has presets of is no part of a run: see test_search.py.
SWEEPS = GROUPS.pop("sweep")
OPTIONS = [(group, option) for group, names in GROUPS.items() for option in names]
RECIPES = recipe_names([CONF])
# A recipe with another model is none, but for the first of those that share their settings.
OF_ANY_MODEL = ["pytorch_examples_200_tied"]
EXPERIMENTS = [*{*GROUPS["experiment"]} - {*RECIPES}, *OF_ANY_MODEL]


@pytest.fixture(autouse=True)
def every_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "is_available", lambda name: True)
    monkeypatch.setattr(hardware, "num_here", lambda name: 2)
    monkeypatch.setattr(loggers, "find_spec", lambda name: True)  # with every package


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Files that any source and tokenizer can be made with."""
    (tmp_path / "text").mkdir()
    for split in ("train", "valid", "test"):
        (tmp_path / "text" / f"{split}.txt").write_text(" = A = \n\n some words \n")
    (tmp_path / "rows.csv").write_text("text\nsome words\n")
    (tmp_path / "rows.jsonl").write_text('{"text": "some words"}\n')
    (tmp_path / "rows.parquet").write_bytes(b"PAR1")
    source, store = Files(str(tmp_path / "text")), tmp_path / "store"
    prepared = prepare(source, Bytes(), tmp_path, workers=1, store=store)
    (store / "data.json").write_text(json.dumps(prepared.describe()))
    (tmp_path / "tokens.ds").write_bytes(b"")
    model = '{"type": "WordLevel", "vocab": {"<eos>": 0, "a": 1}, "unk_token": "<eos>"}'
    (tmp_path / "tokenizer.json").write_text(f'{{"model": {model}}}')
    (tmp_path / "words.txt").write_text("<eos>\n<unk>\nwords\n")
    (tmp_path / "spm.model").write_bytes(sentencepiece_model())
    with (tmp_path / "enwik8").open("wb") as file:
        file.truncate(10_000_001)  # holes, which take no room
    (tmp_path / "input.txt").write_text("some words\n" * 22_000)
    return tmp_path


@cache
def sentencepiece_model() -> bytes:
    from sentencepiece import SentencePieceTrainer

    model = io.BytesIO()
    texts = iter(["some words", "other words"] * 9)
    settings = {"vocab_size": 20, "hard_vocab_limit": False, "minloglevel": 2}
    SentencePieceTrainer.train(sentence_iterator=texts, model_writer=model, **settings)
    return model.getvalue()


def missing(config: dict, corpus: Path) -> list[str]:
    """What a user must say besides the option."""
    files = {
        "Csv": "rows.csv",
        "Enwik8": "enwik8",
        "Jsonl": "rows.jsonl",
        "Parquet": "rows.parquet",
        "Pretrained": "tokenizer.json",
        "SentencePiece": "spm.model",
        "TinyShakespeare": "input.txt",
        "WordList": "words.txt",
    }
    files |= {"Store": "store", "Datatrove": "tokens.ds", "Mixture": "store"}
    named = {"paths": "paths.a"}
    return [
        f"{group}.{named.get(key, key)}="
        f"{corpus / files.get(config[group]['_target_'].rpartition('.')[2], 'text')}"
        for group in ("data", "tokenizer")
        for key, value in config[group].items()
        if value == "???"
    ]


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_option_passes_the_check(group, option, corpus):
    beside = {("tokenizer", "stored"): "data=store", ("head", "ngram"): "model=ngram"}
    argv = [f"{group}={option}", *([beside[group, option]] if (group, option) in beside else [])]
    argv += missing(compose(argv).config, corpus)
    config, _ = check(compose(argv))
    assert config["name"] == (option if group == "experiment" else "quick")


@pytest.mark.parametrize("experiment", sorted(EXPERIMENTS))
@pytest.mark.parametrize("model", group_options([CONF])["model"])
def test_every_experiment_takes_every_model(experiment, model, corpus):
    argv = [f"experiment={experiment}", f"model={model}"]
    argv += missing(compose(argv).config, corpus)
    config, _ = check(compose(argv))
    assert config["model"]["_target_"].lower() == f"lmkit.model.{model.replace('_', '')}"


def test_the_groups_are_those_of_the_code():
    assert set(GROUPS) == {*SLOTS, "experiment", "debug"}


def test_the_table_of_contents_names_every_group():
    text = (CONF / "train.yaml").read_text()
    contents = yaml.safe_load(text)
    groups = [group for entry in contents.pop("defaults") if entry != "_self_" for group in entry]
    assert sorted(groups) == sorted(GROUPS)
    assert set(contents) == set(Root.__dataclass_fields__) - set(SLOTS)


@pytest.mark.parametrize(("group", "option"), [*OPTIONS, *(("sweep", name) for name in SWEEPS)])
def test_every_option_says_what_it_is_for(group, option):
    file = CONF / group / f"{option}.yaml"
    assert 10 < len(purpose([CONF], group, option)) < 95
    assert len(file.read_text().splitlines()) <= 40


def test_the_published_settings_of_pytorch_examples():
    argv = ["experiment=pytorch_examples_650_tied", "data.path=x"]
    config = compose(argv).config
    assert config["data"] == {
        "_target_": "lmkit.corpus.WikiText",
        "path": "x",
        "protocol": "stream",
        "batch_size": 20,
        "bptt": 35,
        "eval_batch_size": 10,
    }
    assert config["model"]["hidden_size"] == config["model"]["embedding_size"] == 650
    assert config["model"]["tie_weights"] is True
    assert config["optimizer"] == {"_target_": "torch.optim.SGD", "lr": 20}
    assert config["scheduler"]["factor"] == 0.25
    assert config["trainer"]["gradient_clip_val"] == 0.25
    assert config["trainer"]["max_epochs"] == 40
