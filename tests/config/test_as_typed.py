"""A key that takes text has what was typed, whatever Hydra's grammar or YAML reads it as."""

import shlex
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from lmkit.command import commands
from lmkit.config.as_typed import as_texts, takes_text, takes_texts, text_keys
from lmkit.config.binding import assigned
from lmkit.config.check import check
from lmkit.config.compose import compose, composed
from lmkit.errors import UserError
from lmkit.run import Run
from lmkit.sweep.multirun import _lines

# What one of the two reads as a number, a truth value, a date, a list, a mapping or nothing.
ODD = [
    *("12e3", "41e7730", "1_000", "0123", "0x1f", "1:30", "2024-01-01", "inf", "nan", ".5", "1."),
    *("true", "yes", "on", "off", "null", "~", "[END]", "[a,b]", "{a: 1}", "a,b", "don't", "[a"),
    *("a b", "(x)", "1..2", "choice(a,b)", "range(1,3)", "a:b", "#c", "%", "*", "&x", "!y", "a=b"),
]


@pytest.mark.parametrize("text", [each for each in ODD if each != "null"])
def test_the_command_line(text):
    key = "logger.wandb.notes"
    found = compose(["logger=wandb", f"{key}={text}", f"name={text}", f"run_id={text}"])
    assert found.mistakes == []
    assert found.config["logger"]["wandb"]["notes"] == text
    assert found.config["name"] == found.config["run_id"] == text


def test_what_hydras_flags_show():
    argv = ["logger=wandb", "logger.wandb.notes=12e3", "name=a,b"]
    assert composed(argv).logger.wandb.notes == "12e3"
    assert composed(argv).name == "a,b"


def test_null_is_none_where_a_key_may_be_and_a_text_elsewhere():
    assert compose(["run_id=null", "name=null"]).config["run_id"] is None
    assert compose(["name=null"]).config["name"] == "null"
    assert compose(["run_id='null'"]).config["run_id"] == "null"


@pytest.mark.parametrize("written", ['"[END]"', "'[END]'", "[END]"])
def test_quotes_of_hydra_still_quote(written):
    argv = ["tokenizer=pretrained", "tokenizer.path=x", f"tokenizer.eos={written}"]
    assert compose(argv).config["tokenizer"]["eos"] == "[END]"


def test_another_keys_value_is_a_text_too():
    config, _ = check(compose(["run_id='${seed}'", "seed=17"]))
    assert config["run_id"] == "17"


def test_lists_of_texts():
    argv = ["logger=wandb", 'logger.wandb.tags=[1e3,0123,yes,null,"a, b",[x]]']
    tags = compose(argv).config["logger"]["wandb"]["tags"]
    assert tags == ["1e3", "0123", "yes", "null", "a, b", "[x]"]


def test_a_text_or_a_number():
    column = lambda text: compose(["data=csv", f"data.column={text}"]).config["data"]["column"]  # noqa: E731
    assert (column("2"), column("1e3"), column("true"), column("b")) == (2, "1e3", "true", "b")


def test_numbers_are_numbers():
    config = compose(["seed=12e3", "model.hidden_size=1_000", "trainer.max_epochs=0"]).config
    assert (config["seed"], config["model"]["hidden_size"]) == (12000.0, 1000)


def test_what_is_no_text_keeps_its_mistake():
    found = compose(["seed=1,2", "model.dropout=[a", "name=a,b"])
    assert [mistake.partition(":")[0] for mistake in found.mistakes] == [
        "model.dropout=[a",
        "seed=1,2",
    ]
    assert found.config["seed"] == 1
    assert found.config["name"] == "a,b"


@pytest.mark.parametrize(
    "text",
    ["12e3", "1_000", "0123", "0x1f", "1:30", "2024-01-01", ".inf", "yes", "[END]", "{a: 1}"],
)
def test_a_preset_of_the_user(text, tmp_path):
    for file, lines in {
        "tokenizer/mine.yaml": f"_target_: lmkit.tokenizer.Pretrained\npath: x\neos: {text}\n",
        "experiment/mine.yaml": "# @package _global_\ndefaults:\n  - override /logger: wandb\n"
        f"run_id: {text}\nlogger:\n  wandb:\n    group: {text}\n    tags: [{text}, a]\n"
        "seed: 0x10\n",
    }.items():
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text(lines)
    argv = ["--config-dir", str(tmp_path), "experiment=mine", "tokenizer=mine"]
    config = compose(argv).config
    assert config["tokenizer"]["eos"] == text
    assert config["run_id"] == config["logger"]["wandb"]["group"] == text
    assert config["logger"]["wandb"]["tags"] == [text, "a"]
    assert config["seed"] == 16


@given(st.text(st.characters(codec="ascii", categories=("L", "N", "P", "S")), min_size=1))
@settings(max_examples=15, deadline=None)
def test_any_word_survives_the_command_line_and_the_run_directory(tmp_path_factory, text):
    quoted = text[0] in "'\"" and text[-1] == text[0] and len(text) > 1
    if "${" in text or "\\" in text or quoted or text in ("null", "???"):
        return
    argv = [
        "data=files",
        f"data.path={Path(__file__)}",
        "logger=wandb",
        f"logger.wandb.notes={text}",
    ]
    config, _ = check(compose(argv))
    assert config["logger"]["wandb"]["notes"] == text
    run = Run(tmp_path_factory.mktemp("run"))
    run.write("config.yaml", config)
    assert run.config() == compose([], run.path / "config.yaml").config == config


def test_a_number_in_a_run_directory_stays_one(tmp_path):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"seed": 3, "model": {"dropout": 1e-5}}))
    config = compose([], tmp_path / "config.yaml").config
    assert config == {"seed": 3, "model": {"dropout": 1e-5}}
    assert compose(["name=12e3"], tmp_path / "config.yaml").config["name"] == "12e3"


def test_a_commands_own_keys():
    types = {"checkpoint": "str", "split": "str | None", "num_lanes": "int | None"}
    own = compose(["checkpoint=12e3", "split=[a", "num_lanes=1e2"], own=types).own
    assert own == {"checkpoint": "12e3", "split": "[a", "num_lanes": 100.0}
    assert compose(["split=null"], own=types).own == {"split": None}
    assert commands()["evaluate"].own["checkpoint"][0] == "str"


def test_types_that_are_text():
    assert all(map(takes_text, ["str", "str | null", "str | Path | null", "str | None"]))
    assert not any(map(takes_text, ["int", "str | bool", "null", "list[str]", "", "Literal"]))
    assert takes_texts("list[str] | null")
    assert takes_texts("str | Sequence[str]")
    assert not takes_texts("list[int]")


@pytest.mark.parametrize("value", ["[END]", "a b", "it's", "$x", "0.1", True])
def test_what_is_advised_can_be_pasted_into_a_shell(value):
    shown = str(value).lower() if isinstance(value, bool) else value
    assert shlex.split(assigned("data.column", value)) == [f"data.column={shown}"]


def test_a_mistakes_advice_can_be_pasted():
    with pytest.raises(UserError, match=r"did you mean 'logger\.wandb\.group=a b'"):
        check(compose(["logger=wandb", "group=a b"]))


@pytest.mark.parametrize(
    ("line", "texts"),
    [
        ("++name=1e3", '++name="1e3"'),
        ("++name=1e3,x,2_0", '++name="1e3",x,"2_0"'),
        ("++name='a,b',[END]", "++name='a,b',\"[END]\""),
        ("++name=null", "++name=null"),
        ("++name=glob(a*)", "++name=glob(a*)"),
        ("++optimizer.lr=1e-3,2e-3", "++optimizer.lr=1e-3,2e-3"),
    ],
)
def test_values_of_a_sweep_are_the_texts_that_were_typed(line, texts):
    assert as_texts(line, text_keys(compose([]).config)) == texts


@pytest.mark.parametrize(
    ("typed", "identity"), [("12e3", "12e3"), ("007", "007"), ("1_000", "1_000"), ("'a'", "a")]
)
def test_the_id_of_a_multirun_is_what_was_typed(typed, identity):
    assert _lines([f"run_id={typed}"], []) == ([], identity)
    assert _lines(["run_id=null"], [])[1] != "None"
