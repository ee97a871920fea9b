"""What loggers have of runs that finish, fail, are stopped or killed, by their own readers."""

import csv
import json
import os
import shlex
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import injected
import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from journey import LIMIT

from lmkit.config.check import check
from lmkit.config.compose import compose
from lmkit.config.loggers import grouped
from lmkit.errors import UserError
from lmkit.run import GROUP, Run
from lmkit.system.processes import Launched
from lmkit.training.loggers import JsonlLogger
from lmkit.training.loggers.tracker import NOTHING, Account, Rows
from lmkit.training.loggers.trackers import make_trackers
from lmkit.training.loggers.wandb import records

KINDS = ["wandb", "tensorboard", "csv", *(["mlflow"] if find_spec("mlflow") else [])]
STEPS = ["trainer.max_steps=30", "trainer.max_epochs=-1", "trainer.val_check_interval=15"]


def run_lmkit(*arguments: str, cwd: Path, code: int, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, injected.__file__, *arguments],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )
    assert done.returncode == code, done.stderr
    return done.stderr


def train(place: Path, settings: list[str], fault: str, code: int, *more: str) -> tuple[Path, str]:
    """A run whose 26th step is not like the others."""
    environment = injected.fail_at(0, 25, fault, place / "once")
    command = ("train", *settings, *STEPS, "run_id=r", *more)
    return place / "outputs" / "tiny" / "r", run_lmkit(
        *command, cwd=place, code=code, **environment
    )


@pytest.fixture(scope="module")
def killed(tmp_path_factory, settings) -> tuple[Path, str, Path]:
    """A run killed five steps after a checkpoint and resumed, and what the second one printed."""
    place = tmp_path_factory.mktemp("a place")
    run, _ = train(place, settings, "kill", -signal.SIGKILL, f"logger=[{','.join(KINDS)}]")
    longer = "trainer.max_epochs=5"  # than the steps take, but another config
    return run, run_lmkit("resume", "r", longer, cwd=place, code=0), place


def rows(run: Path) -> list[dict]:
    """metrics.jsonl: {"step": ..., "train/nll": ...}"""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def values(rows: list[dict]) -> list[tuple[int, str, float]]:
    """(step, key, value), but for what the clock says, which a killed process knew otherwise."""
    clock = ("step", "seconds", "train/tokens_per_second")
    return sorted((r["step"], key, r[key]) for r in rows for key in r if key not in clock)


def wandb_records(run: Path) -> list:
    parts = sorted(run.glob("wandb/offline-run-*/run-r.wandb"))
    return [record for part in parts for record in records(part)]


def items(entries) -> dict:
    """By key; a table is {field: value}."""
    found: dict = {}
    for entry in entries:
        value = json.loads(entry.value_json)
        if entry.nested_key[1:]:
            found.setdefault(entry.nested_key[0], {})[entry.nested_key[1]] = value
        else:
            found[entry.key or entry.nested_key[0]] = value
    return found


def wandb_rows(run: Path) -> list[dict]:
    history = [items(r.history.item) for r in wandb_records(run) if r.HasField("history")]
    return [
        {"step": row.pop("trainer/global_step")}
        | {key: row[key] for key in row if not key.startswith("_")}
        for row in history
    ]


def test_wandb_has_each_row_of_a_killed_run_once(killed):
    run, _, _ = killed
    found = wandb_rows(run)
    assert len(list(run.glob("wandb/offline-run-*"))) == 2
    assert values([row for row in found if "samples" not in row]) == values(rows(run))
    samples = [(row["step"], row["samples"]["nrows"]) for row in found if "samples" in row]
    assert samples == [(15, 1), (30, 2)]
    tables = [json.loads(file.read_text()) for file in run.rglob("samples_*.table.json")]
    (table,) = (table for table in tables if len(table["data"]) == 2)
    lines = (run / "samples.jsonl").read_text().splitlines()
    assert table["columns"] == ["step", "epoch", "prompt", "text"]
    assert table["data"] == [list(json.loads(line).values()) for line in lines]


def test_wandb_has_config_identity_and_result(killed):
    run, _, _ = killed
    found = wandb_records(run)
    for record in (r.run for r in found if r.HasField("run")):
        identity = (record.run_id, record.display_name, record.project, record.job_type)
        assert identity == ("r", "tiny/r", "lmkit", "train")
    config: dict = {}
    for record in (r.config for r in found if r.HasField("config")):
        config |= items(record.update)
    asked = yaml.safe_load((run / "config.yaml").read_text())
    assert {key: config[key] for key in asked} == asked
    data = json.loads((run / "data.json").read_text())
    summary = json.loads((run / "summary.json").read_text())
    assert config["hashes"]["tokenizer"] == data["tokenizer"]
    assert config["hashes"]["train"] == data["splits"]["train"]["sha256"]
    assert config["num_parameters"] == summary["num_parameters"]
    assert config["git"] is None  # of the directory in which the user works
    assert [r.exit.exit_code for r in found if r.HasField("exit")] == [0]
    told: dict = {}
    for record in (r.summary for r in found if r.HasField("summary")):
        told |= items(record.update)
    assert {key: told[key] for key in summary} == summary
    assert summary.keys() >= {"best/val/nll", "best/val/perplexity", "best/step", "test/nll"}


def test_what_to_sync_is_told(killed):
    run, told, place = killed
    parts = [str(part.relative_to(place)) for part in sorted(run.glob("wandb/offline-run-*"))]
    (line,) = (line for line in told.splitlines() if line.startswith("to wandb: "))
    assert shlex.split(line.removeprefix("to wandb: ")) == ["wandb", "sync", *parts]


def test_tensorboard_has_each_row_once_and_compares_results(killed):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    from tensorboard.plugins.hparams import plugin_data_pb2

    run, _, _ = killed
    everything = {"scalars": 0, "tensors": 0}
    events = accumulator.EventAccumulator(str(run / "tensorboard" / "r"), everything).Reload()
    scalars = {key: events.Scalars(key) for key in events.Tags()["scalars"]}
    found = [(e.step, key, e.value) for key in scalars for e in scalars[key]]
    clock = ("seconds", "train/tokens_per_second")
    logged = [v for v in found if v[1] not in clock and not v[1].startswith("best/")]
    wanted = [(step, key, float(np.float32(value))) for step, key, value in values(rows(run))]
    assert sorted(logged) == wanted
    summary = json.loads((run / "summary.json").read_text())
    assert [e.value for e in scalars["best/val/nll"]] == [np.float32(summary["best/val/nll"])]
    texts = events.Tensors("samples/text_summary")
    lines = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    assert [text.step for text in texts] == [15, 30]
    for text, line in zip(texts, lines, strict=True):
        said = text.tensor_proto.string_val[0].decode()
        assert said == "prompt: `The`\n\n    " + line["text"].replace("\n", "\n    ")

    def plugin_data(tag: str) -> plugin_data_pb2.HParamsPluginData:
        content = events.SummaryMetadata(tag).plugin_data.content
        return plugin_data_pb2.HParamsPluginData.FromString(content)

    experiment = plugin_data("_hparams_/experiment").experiment
    tags = {metric.name.tag for metric in experiment.metric_infos}
    assert tags >= {"best/val/nll", "test/perplexity"}
    start = plugin_data("_hparams_/session_start_info").session_start_info
    assert start.hparams["model/hidden_size"].number_value == 12
    assert start.hparams["optimizer/_target_"].string_value == "torch.optim.Adam"
    assert plugin_data("_hparams_/session_end_info").session_end_info.status == 1  # success


def test_a_csv_file_has_the_rows(killed):
    run, _, _ = killed
    with (run / "csv" / "r" / "metrics.csv").open() as file:
        found = list(csv.DictReader(file))
    read = [{key: float(row[key]) for key in row if row[key] != ""} for row in found]
    assert values(read) == values(rows(run))
    hparams = yaml.safe_load((run / "csv" / "r" / "hparams.yaml").read_text())
    assert hparams["model"]["hidden_size"] == 12


# mlflow asks sqlalchemy for what is deprecated there
@pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")
def test_mlflow_goes_on_with_its_run(killed):
    tracking = pytest.importorskip("mlflow.tracking")
    run, _, _ = killed
    client = tracking.MlflowClient(f"sqlite:///{run / 'mlflow.db'}")
    (experiment,) = client.search_experiments(filter_string="name = 'tiny'")
    (found,) = client.search_runs([experiment.experiment_id])
    assert (found.info.run_name, found.info.status) == ("tiny/r", "FINISHED")
    assert found.data.params["model/hidden_size"] == "12"
    assert found.data.params["trainer/max_epochs"] == "-1"  # as the run began
    history = [
        {"step": metric.step, key: metric.value}
        for key in found.data.metrics
        if not key.startswith("best/")
        for metric in client.get_metric_history(found.info.run_id, key)
    ]
    assert values(history) == values(rows(run))
    summary = json.loads((run / "summary.json").read_text())
    assert found.data.metrics["best/val/nll"] == summary["best/val/nll"]


@pytest.mark.parametrize(("fault", "code"), [("nan", 1), ("terminate", 143)])
def test_a_run_that_fails_or_is_stopped(tmp_path, settings, fault, code):
    run, told = train(tmp_path, settings, fault, code, "logger=[wandb,tensorboard]")
    found = wandb_records(run)
    assert [r.exit.exit_code for r in found if r.HasField("exit")] == [code]
    assert any("best/val/nll" in items(r.summary.update) for r in found if r.HasField("summary"))
    assert "\nto wandb: wandb sync outputs/tiny/r/wandb/offline-run-" in told
    assert not [path for path in run.glob("wandb/*/logs/*") if path.is_symlink()]


def test_a_missing_package_is_told_before_training(monkeypatch):
    for package in ("tensorboard", "tensorboardX", "comet_ml"):
        monkeypatch.setitem(sys.modules, package, None)
    settings = ["logger=tensorboard", "model.hiden_size=3"]
    settings.append("+logger.c._target_=lightning.pytorch.loggers.CometLogger")
    with pytest.raises(UserError) as error:
        check(compose(settings))
    assert str(error.value) == (
        "3 mistakes:\n  model.hiden_size is not a key of lmkit.model.LSTM; did you mean "
        "model.hidden_size?\n"
        "  logger.tensorboard: lightning.pytorch.loggers.TensorBoardLogger needs the package "
        "tensorboard: pip install 'recurrent-lmkit[tensorboard]'\n"
        "  logger.c: lightning.pytorch.loggers.CometLogger needs the package comet_ml: "
        "pip install comet-ml"
    )


NODES = {"csv": {"_target_": "lightning.pytorch.loggers.CSVLogger", "name": "csv"}}


def test_a_logger_that_cannot_be_made_costs_a_warning(tmp_path, monkeypatch, caplog):
    def fail(*_: object, **__: object) -> None:
        raise ConnectionError("no route to host")

    monkeypatch.setattr("lightning.pytorch.loggers.CSVLogger.__init__", fail)
    account = Account(tmp_path, None, JsonlLogger(tmp_path))
    assert make_trackers(NODES, Run(tmp_path), account) == []
    assert caplog.messages == [
        "logger.csv cannot start (ConnectionError: no route to host): the run goes on without it"
    ]


@pytest.mark.parametrize("rank", [0, 1])
def test_the_first_of_several_processes_alone_logs(tmp_path, monkeypatch, rank):
    place = Launched("torchrun", rank, 2, rank, 2)
    monkeypatch.setattr("lmkit.training.loggers.trackers.launched", lambda: place)
    account = Account(tmp_path, None, JsonlLogger(tmp_path))
    assert len(make_trackers(NODES, Run(tmp_path), account)) == (rank == 0)


def test_a_run_of_a_sweep_is_in_its_group(monkeypatch):
    target = {"_target_": "lmkit.training.loggers.WandbLogger"}
    tensorboard = {"_target_": "lightning.pytorch.loggers.TensorBoardLogger"}
    config = {"logger": {"a": target, "b": {**target, "group": "mine"}, "c": tensorboard}}
    monkeypatch.delenv(GROUP, raising=False)
    assert grouped(config) == config
    monkeypatch.setenv(GROUP, "sweep-1")
    assert grouped(config)["logger"] == {
        "a": {**target, "group": "sweep-1"},
        "b": {**target, "group": "mine"},
        "c": tensorboard,
    }


@given(
    steps=st.lists(st.integers(0, 9), max_size=30).map(sorted),
    data=st.data(),
)
def test_rows_are_passed_on_once_wherever_a_run_is_cut(steps, data):
    """A process goes on from any row, with a logger that has any number of the rows."""
    every = [{"step": step} for step in steps]
    has = data.draw(st.integers(0, len(every)))
    before = Rows()
    for row in every[:has]:
        assert before.is_new(row)
    after = Rows(known=before.last)
    assert sum(map(after.is_new, every)) == len(every) - has
    assert (after.last == NOTHING) == (not every)
    assert after.reached == after.last
