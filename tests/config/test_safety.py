"""Configs that would write down a secret, or write outside the run directory."""

from pathlib import Path

import pytest
import yaml

from lmkit.config.check import check
from lmkit.config.compose import compose
from lmkit.config.safety import anchored
from lmkit.errors import UserError
from lmkit.system.redaction import redact

CANARY = "Canary-in-a-coal-mine"
WRITTEN = (
    "a secret would be written into the run directory: put it into the environment and write "
    "'${oc.env:NAME}'"
)


def mistakes_of(*argv: str, base: Path | None = None, trains: bool = True) -> list[str]:
    with pytest.raises(UserError) as error:
        check(compose(argv, base), trains=trains)
    return [line.strip() for line in str(error.value).splitlines()[1:]]


@pytest.mark.parametrize(
    ("argument", "key"),
    [
        (f"logger.wandb.api_key={CANARY}", "logger.wandb.api_key"),
        (f"data.hf_token={CANARY}", "data.hf_token"),
        (f"data.data_files={{auth: {{user: {CANARY}}}}}", "data.data_files.auth.user"),
        (f"callbacks.samples.password=[{CANARY}]", "callbacks.samples.password"),
        ("trainer.secret=12345678", "trainer.secret"),
        (f"api_key={CANARY}", "api_key"),
        (f"data.token='x${{oc.env:HOME}}{CANARY}'", "data.token"),
        (f"data.token='${{oc.env:NOT_SET,{CANARY}}}'", "data.token"),
    ],
)
def test_a_literal_secret_is_a_mistake_and_not_shown(argument, key):
    found = mistakes_of("logger=wandb", argument)
    assert f"{key}: {WRITTEN}" in found
    assert CANARY not in str(found)
    assert "12345678" not in str(found)
    assert CANARY not in redact(f"a traceback with {CANARY}") or "12345678" in argument


@pytest.mark.parametrize("value", ["null", "true", "''", "'${oc.env:COMET_API_KEY}'"])
def test_what_is_no_literal_secret_is_none(value):
    found = mistakes_of("logger=wandb", f"logger.wandb.api_key={value}")
    assert found == [
        "logger.wandb.api_key is not a key of lmkit.training.loggers.WandbLogger; there are: "
        "project, mode, entity, group, tags, name, notes, job_type"
    ]


@pytest.mark.parametrize("user", ["me:pw", "ghp_0123456789"])
def test_a_url_with_a_user_is_a_mistake(user, monkeypatch):
    sentence = (
        "tokenizer.path: the URL holds a user or password, which would be written into the run "
        "directory: leave it out and log in by other means, as ~/.netrc"
    )
    url = f"https://{user}@host/x"
    found = mistakes_of("tokenizer=pretrained", f"tokenizer.path={url}")
    assert sentence in found
    monkeypatch.setenv("WHERE", url)
    found = mistakes_of("tokenizer=pretrained", "tokenizer.path=${oc.env:WHERE}")
    assert sentence in found
    assert user not in str(found)


def test_the_value_of_a_secret_variable_is_a_mistake_wherever_it_is_written(monkeypatch):
    monkeypatch.setenv("DB_PASSWORD", CANARY)
    assert mistakes_of(f"callbacks.samples.prompt=Say {CANARY}") == [
        "callbacks.samples.prompt: holds the value of DB_PASSWORD, a secret by its name: leave it "
        "out"
    ]


def test_a_secret_variable_may_be_revealed_under_the_key_of_a_secret_alone(tmp_path, monkeypatch):
    """A config found on disk must not send what is in the environment elsewhere."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", CANARY)
    config = check(compose([]))[0]
    config["data"] = {
        "_target_": "lmkit.corpus.Files",
        "path": "https://elsewhere/${oc.env:AWS_SECRET_ACCESS_KEY}",
    }
    base = tmp_path / "config.yaml"
    base.write_text(yaml.safe_dump(config))
    for trains in (True, False):
        found = mistakes_of(base=base, trains=trains)
        assert found[0] == (
            "data.path: holds the value of AWS_SECRET_ACCESS_KEY, a secret by its name: leave it "
            "out"
        )
        assert CANARY not in str(found)


@pytest.mark.parametrize(
    "argument",
    [
        "logger.wandb.project='${oc.env:WHERE}'",
        "logger.wandb.tags=[a,'${oc.env:WHERE}']",
        "callbacks.samples.prompt=${oc.env:WHERE}",
        "name='${oc.env:WHERE}'",
        "trainer.gradient_clip_algorithm='${ oc.env : WHERE }'",
        "logger.wandb.group='${oc.decode:\"${oc.env:WHERE}\"}'",
    ],
)
def test_what_the_environment_reveals_is_not_told_to_what_writes(argument, monkeypatch):
    monkeypatch.setenv("WHERE", CANARY)
    (found,) = (m for m in mistakes_of("logger=wandb", argument) if "reveals" in m)
    assert found == (
        f"{argument.partition('=')[0]}: what ${{oc.env:WHERE}} reveals would be written into the "
        "run directory: write it out, or keep it to data and tokenizer"
    )
    assert CANARY not in found


def test_what_the_environment_reveals_is_shown_unresolved(tmp_path, monkeypatch):
    monkeypatch.setenv("WHERE", str(tmp_path / CANARY))
    (found,) = mistakes_of("tokenizer=pretrained", "tokenizer.path=${oc.env:WHERE}")
    assert found.startswith("tokenizer.path=${oc.env:WHERE}: cannot read ${oc.env:WHERE}: ")


OUT = (
    "leads out of the run directory, and a run writes there alone: give a relative path without .."
)


@pytest.mark.parametrize(
    "settings",
    [
        {"logger.csv._target_": "lightning.pytorch.loggers.CSVLogger", "logger.csv.name": "/x"},
        {"logger.csv._target_": "lightning.pytorch.loggers.CSVLogger", "logger.csv.name": "../x"},
        {"logger.csv._target_": "lightning.pytorch.loggers.CSVLogger", "logger.csv.prefix": "~/x"},
        {
            "logger.t._target_": "lightning.pytorch.loggers.TensorBoardLogger",
            "logger.t.sub_dir": "a/../../x",
        },
        {
            "callbacks.m._target_": "lightning.pytorch.callbacks.ModelCheckpoint",
            "callbacks.m.dirpath": "/tmp/x",
        },
        {
            "callbacks.m._target_": "lightning.pytorch.callbacks.ModelCheckpoint",
            "callbacks.m.filename": "../{epoch}",
        },
        {
            "callbacks.m._target_": "lightning.pytorch.callbacks.ModelCheckpoint",
            "callbacks.m.dirpath": "file:/x",
        },
        {
            "trainer.profiler._target_": "lightning.pytorch.profilers.SimpleProfiler",
            "trainer.profiler.dirpath": "/tmp",
        },
        {
            "trainer.profiler._target_": "lightning.pytorch.profilers.AdvancedProfiler",
            "trainer.profiler.filename": "..",
        },
    ],
)
def test_no_name_of_an_artefact_leads_out_of_the_run_directory(settings):
    argv = [
        f"++{key}={value}" if key.endswith("path") else f"++{key}='{value}'"
        for key, value in settings.items()
    ]
    key, value = list(settings.items())[-1]
    refused = "callbacks.m: ModelCheckpoint would "  # wherever it writes
    found = [mistake for mistake in mistakes_of(*argv) if not mistake.startswith(refused)]
    assert found == [f"{key}={value}: {OUT}"]


def test_texts_of_lmkits_own_objects_are_free():
    check(compose(["callbacks.samples.prompt=../ or /etc"]))


def test_directories_of_lightnings_objects_are_inside_the_run_directory():
    node = {
        "_target_": "lightning.pytorch.Trainer",
        "max_time": {"hours": 1},
        "profiler": {"_target_": "lightning.pytorch.profilers.SimpleProfiler", "dirpath": "times"},
    }
    made = anchored(node, Path("/runs/one"))
    assert made["profiler"]["dirpath"] == "/runs/one/times"
    assert made["max_time"] == {"hours": 1}
    own = {"_target_": "mine.Callback", "dirpath": "times"}
    assert anchored(own, Path("/runs/one")) == own
