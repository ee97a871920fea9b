"""Run directories: ids, holders, continuing, and what is written there."""

import json
import math
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from spawned import stay

import lmkit
from lmkit.errors import UserError
from lmkit.run import Run, mint_id
from lmkit.run.environment import environment, mask
from lmkit.system.files import strict_json, write_atomically

CONFIG = {
    "outputs": "outputs",
    "run_id": None,
    "model": {"_target_": "lmkit.model.LSTM", "hidden_size": 200},
    "trainer": {"max_epochs": 1, "devices": 1, "precision": "32-true"},
    "data": {"bptt": 35, "key": "${oc.env:DATA_KEY}"},
    "logger": {},
}


def changed(**changes) -> dict:
    """CONFIG with `group__key=value`."""
    config = json.loads(json.dumps(CONFIG))
    for name, value in changes.items():
        group, _, key = name.partition("__")
        config[group][key] = value
    return config


def create(outputs: Path, run_id: str | None = "one", config: dict = CONFIG, **more) -> Run:
    return Run.create(outputs, "lm", run_id, config, **more)


def test_processes_that_the_holder_has_started_hold_it_too(tmp_path, caplog):
    run = create(tmp_path)
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=stay, args=(run, theirs))
    process.start()
    assert ours.recv() == run.path
    run.release()  # as the kernel does for a process that is killed
    assert run.held()
    with pytest.raises(UserError, match=f"is held by process {os.getpid()} on "):
        run.check(CONFIG)
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    holder = f"process {dead.pid} on {os.uname().nodename}"
    (run.path / ".lock").write_text(f"{holder}\n")
    threading.Timer(0.5, ours.send, ["end"]).start()
    run.check(CONFIG)
    assert not run.held()
    process.join()
    (record,) = caplog.records
    said = f"{holder} has died; waiting for the processes that it started to end"
    assert record.getMessage() == said


def test_files_of_a_new_run(tmp_path):
    command = ["lmkit", "train", "logger.api_key=abc"]
    run = create(tmp_path, None, overrides=["seed=2", "data.token=hf_abc"], command=command)
    assert run.path == tmp_path / "lm" / run.id
    assert not run.continued
    assert run.config() == CONFIG
    assert yaml.safe_load((run.path / "overrides.yaml").read_text()) == ["seed=2", "data.token=***"]
    environment = json.loads((run.path / "environment.json").read_text())
    assert environment["command"] == ["lmkit", "train", "logger.api_key=***"]
    assert environment["versions"].keys() >= {"python", "lmkit", "torch", "lightning", "omegaconf"}
    assert environment["hardware"]["num_cpus"] == os.cpu_count()
    status = json.loads((run.path / "status.json").read_text())
    assert (status["status"], status["pid"], status["ended"]) == ("running", os.getpid(), None)
    assert (run.path / "checkpoints").is_dir()
    run.write_status("stopped", "stopped by SIGTERM", 143)
    ended = run.status()
    assert (ended["status"], ended["reason"], ended["exit_code"]) == (
        "stopped",
        "stopped by SIGTERM",
        143,
    )
    assert ended["created"] == status["created"]
    assert ended["ended"] >= ended["started"]


def git(*arguments: str, cwd: Path) -> str:
    author = ("-c", "user.name=a", "-c", "user.email=a@b")
    command = ["git", *author, *arguments]
    return subprocess.run(command, cwd=cwd, check=True, capture_output=True, text=True).stdout


def test_the_users_repository_is_recorded(tmp_path, monkeypatch):
    work = tmp_path / "work"
    (work / "inside").mkdir(parents=True)
    monkeypatch.chdir(work / "inside")
    assert environment([])["git"] is None
    git("init", "-q", "-b", "idea", cwd=work)
    assert environment([])["git"] is None  # before the first commit
    (work / "file").write_text("a")
    git("add", "file", cwd=work)
    git("commit", "-q", "-m", "x", cwd=work)
    (work / "untracked").write_text("a")
    commit = git("rev-parse", "HEAD", cwd=work).strip()
    assert environment([])["git"] == {"commit": commit, "branch": "idea", "dirty": False}
    (work / "file").write_text("b")
    assert environment([])["git"]["dirty"] is True


def test_the_checkout_of_lmkit_is_recorded_apart(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recorded = environment([])["lmkit"]
    assert recorded["version"] == lmkit.__version__ == version("recurrent-lmkit")
    here = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    head = subprocess.run(here, capture_output=True, text=True, check=False)
    if head.returncode:
        pytest.skip("not a git checkout")
    assert recorded["git"]["commit"] == head.stdout.strip()


def test_the_version_costs_no_torch():
    code = "import lmkit, sys; lmkit.__version__; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_checkout_that_is_only_on_the_path_says_so(tmp_path):
    (tmp_path / "lmkit").mkdir()
    shutil.copy(lmkit.__file__, tmp_path / "lmkit")
    command = [sys.executable, "-S", "-c", "import lmkit; print(lmkit.__version__)"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "not installed\n"


def test_ids_sort_by_time_and_differ_within_a_second(monkeypatch):
    ids = [mint_id() for _ in range(50)]
    assert len(set(ids)) == 50
    stamps = [run_id[:15] for run_id in ids]
    assert stamps == sorted(stamps)
    time.strptime(stamps[0], "%Y%m%d-%H%M%S")


@pytest.mark.parametrize(
    "name", ["../a", "/a", "a/b", "..", ".", "", ".a", "a\\b", "a\nb", "latest", "-a", "a b"]
)
def test_names_stay_inside_outputs(tmp_path, name):
    expected = (
        "expected letters, digits and any of ._+=,@- after the first letter or digit "
        "(it names a directory inside outputs), and not `latest`"
    )
    with pytest.raises(UserError) as error:
        Run.create(tmp_path, name, None, CONFIG)
    assert str(error.value) == f"name={name}: {expected}"
    with pytest.raises(UserError) as error:
        Run.create(tmp_path, "lm", name, CONFIG)
    assert str(error.value) == f"run_id={name}: {expected}"
    assert list(tmp_path.iterdir()) == []


def test_continued_with_more_length_other_devices_and_logging(tmp_path):
    first = create(tmp_path)
    first.write_status("finished")
    first.release()
    config = changed(trainer__max_epochs=3, trainer__devices=2, logger__wandb={"mode": "offline"})
    second = create(tmp_path, config=config)
    assert second.continued
    assert second.config() == config
    assert second.status()["created"] == first.status()["created"]


def test_the_facts_of_a_recipe_make_no_other_run(tmp_path):
    """Nor their absence, in a run of before there were any."""
    create(tmp_path).release()
    create(tmp_path, config={**CONFIG, "recipe": None}).release()
    assert len(Run(tmp_path / "lm" / "one").read("overrides.yaml")) == 1
    facts = {"source": "a paper", "valid": 61.2, "further": {"cache": [52.2, None]}}
    run = create(tmp_path, config={**CONFIG, "recipe": facts})
    assert run.config()["recipe"] == facts


def test_another_machine_is_said_to_give_other_bits(tmp_path, caplog):
    first = create(tmp_path)
    first.release()
    create(tmp_path).release()
    assert caplog.messages == []
    there = first.read("environment.json")
    there["versions"]["torch"] = "2.0"
    there["hardware"]["processor"] = "another"
    first.write("environment.json", there)
    here = environment([])
    create(tmp_path)
    assert caplog.messages == [
        f"one began with versions.torch 2.0, here {here['versions']['torch']}; hardware.processor "
        f"another, here {here['hardware']['processor']}: it goes on, but not bit for bit"
    ]


def test_another_config_is_an_error_that_names_every_key(tmp_path):
    create(tmp_path).release()
    config = changed(model__hidden_size=300, trainer__gradient_clip_val=1.0, data__batch_size=4)
    with pytest.raises(UserError) as error:
        create(tmp_path, config=config)
    assert str(error.value) == (
        f"run_id=one has another config ({tmp_path}/lm/one):\n"
        "  model.hidden_size: 200 there, 300 now\n"
        "  trainer.gradient_clip_val: absent there, 1.0 now\n"
        "  data.batch_size: absent there, 4 now\n"
        "only length, devices, precision and logging may change; for the rest begin another run, "
        "with lmkit train and another run_id"
    )
    assert Run(tmp_path / "lm" / "one").config() == CONFIG
    create(tmp_path)  # and it is not held any more


HOLD = """
import sys, time
from lmkit.run import Run
run = Run.create(sys.argv[1], "lm", "one", {})
assert "torch" not in sys.modules
print("held", flush=True)
time.sleep(60)
"""


def test_held_by_a_live_process_and_free_when_it_is_killed(tmp_path):
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "held\n"
            with pytest.raises(UserError) as error:
                create(tmp_path, config={})
            assert str(error.value) == (
                f"run_id=one is held by process {process.pid} on {os.uname().nodename} "
                f"({tmp_path}/lm/one): wait for it, stop it, or choose another run_id"
            )
            run = Run.find(tmp_path, "one")
            assert run.status()["status"] == "running"
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait(20)
    status = run.status()
    assert (status["status"], status["reason"]) == ("failed", "its process died")
    assert create(tmp_path, config={}).continued


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_outputs_that_cannot_be_written(tmp_path, place):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError) as error:
        create(tmp_path / place)
    assert str(error.value) == (
        f"cannot write the run directory {tmp_path / place / 'lm' / 'one'}: Not a directory; "
        "give another place with outputs=DIR"
    )


@pytest.fixture
def three(tmp_path) -> Path:
    for name, run_id in (("lm", "20240101-a"), ("lm", "20240102-b"), ("gru", "20240102-c")):
        Run.create(tmp_path, name, run_id, CONFIG).release()
        time.sleep(0.002)
    return tmp_path


def test_find(three):
    assert Run.find(three, "latest").id == "20240102-c"
    assert Run.find(three, "20240101-a").path == three / "lm" / "20240101-a"
    assert Run.find(three, "20240101").id == "20240101-a"
    assert Run.find(three, "gru/20240102-c").name == "gru"
    assert Run.find(three, str(three / "lm" / "20240102-b")).id == "20240102-b"
    again = Run.find(three, "20240101-a")
    again.start(CONFIG)
    assert Run.find(three, "latest").id == "20240101-a"


def test_find_what_is_not_there_or_not_one(three, tmp_path_factory):
    with pytest.raises(UserError) as error:
        Run.find(three, "20240102")
    assert str(error.value) == (
        f"RUN=20240102 names 2 runs in {three}; say which:\n  lm/20240102-b\n  gru/20240102-c"
    )
    with pytest.raises(UserError) as error:
        Run.find(three, "x")
    assert str(error.value) == (
        f"RUN=x names no run in {three}; there are:\n"
        "  lm/20240101-a\n  lm/20240102-b\n  gru/20240102-c"
    )
    bare = tmp_path_factory.mktemp("bare")
    with pytest.raises(UserError) as error:
        Run.find(bare, "latest")
    assert str(error.value) == f"RUN=latest names no run in {bare}, which has no runs"


def test_a_damaged_file_of_the_run_is_named(tmp_path):
    run = create(tmp_path)
    (run.path / "summary.json").write_text("{")
    with pytest.raises(UserError, match=r"summary\.json is damaged: Expecting property name"):
        run.read("summary.json")
    assert run.read("data.json") == {}


def test_secrets_are_masked(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "0123456789")
    assert mask("logger.api_key=abc") == "logger.api_key=***"
    assert mask("+password=abc") == "+password=***"
    assert mask("name=x0123456789y") == "name=x***y"
    for harmless in ("tokenizer=word", "num_tokens=5", "model.hidden_size=3", "tokenizer.path=a"):
        assert mask(harmless) == harmless


def test_json_is_strict():
    value = {"a": math.inf, "b": [math.nan, 1.5], "c": {"d": -math.inf, "e": "ü"}}
    assert strict_json(value) == '{"a": null, "b": [null, 1.5], "c": {"d": null, "e": "ü"}}'


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "summary.json"
    write_atomically(path, b"old")

    def fsync(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
