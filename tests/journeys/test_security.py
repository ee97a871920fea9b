"""Real runs that are given secrets, and hostile runs that are found on disk: what is written, what
is run. docs/security.md names the tests of every promise."""

import hashlib
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
import trained_run
import yaml
from journey import LIMIT

import lmkit
from lmkit import cli
from lmkit.config.compose import compose
from lmkit.errors import UserError
from lmkit.run import Run
from lmkit.run.checkpoints import AtomicCheckpointIO, load_checkpoint

# Repeated, so that a file that is written in blocks holds it whole somewhere.
CANARY = "canary" * 5
# A process that has read a secret and does with it all that it can.
CARELESS = """
import logging, os, sys, warnings
from lmkit.training.task import Task

step = Task.training_step


def training_step(self, window, batch_idx):
    if self.trainer.global_step == 3:
        for name in ("HF_TOKEN", "DB_PASSWORD", "PLACE"):
            secret = os.environ[name]
            print("printed", secret, [secret])
            print("printed", secret, file=sys.stderr)
            warnings.warn(f"warned {secret}")
            logging.getLogger("lmkit.training.task").warning("logged %s", secret)
            logging.getLogger("lightning.pytorch").warning("logged %s", secret)
        if "RAISE" in os.environ and self.trainer.loggers:  # not in the trial before the run
            url = f"https://me:{os.environ['DB_PASSWORD']}@host"
            raise ValueError(f"no access to {url} with {os.environ['PLACE']}")
    return step(self, window, batch_idx)


Task.training_step = training_step

if __name__ == "__main__":
    from lmkit.cli import main

    sys.exit(main())
"""


def written_with(canary: str, *places: Path) -> list[Path]:
    """The files under some places that hold a text."""
    files = [file for place in places for file in place.rglob("*") if file.is_file()]
    assert len(files) > 20
    return [file for file in files if canary.encode() in file.read_bytes()]


def git(*arguments: str, cwd: Path) -> None:
    author = ("-c", "user.name=a", "-c", "user.email=a@b")
    subprocess.run(["git", *author, *arguments], cwd=cwd, check=True, capture_output=True)


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_no_secret_reaches_what_a_run_writes(tmp_path, text, settings, processes):
    """Neither ends well nor badly: the run prints, logs, raises; wandb and a checkout watch."""
    (tmp_path / CANARY).mkdir()
    place = tmp_path / CANARY / "text.txt"
    place.write_bytes(text.read_bytes()[:4000])
    here = tmp_path / "here"
    here.mkdir()
    git("init", "-q", cwd=here)
    git("remote", "add", "origin", f"https://me:{CANARY}@host/x.git", cwd=here)
    git("commit", "-q", "--allow-empty", "-m", "x", cwd=here)
    (here / "careless.py").write_text(CARELESS)
    for name in ("tmp", "home"):
        (here / name).mkdir()
    environment = {
        **os.environ,
        **{"PLACE": str(place), "WANDB_API_KEY": (CANARY + "0" * 40)[:40]},
        **{"HF_TOKEN": f"hf_{CANARY}", "DB_PASSWORD": f'{CANARY} "é"\n'},
        **{"MY_SECRET": f"{CANARY}-s", "PROXY_AUTH": f"{CANARY}-a", "SOME_API_KEY": f"{CANARY}-k"},
        **{"TMPDIR": str(here / "tmp"), "HOME": str(here / "home")},
    }
    ddp = ["trainer=ddp_cpu", f"trainer.devices={processes}", "trainer.precision=32-true"]
    command = [
        *(sys.executable, "careless.py", "train", "logger=[wandb,tensorboard]"),
        *(setting for setting in settings if not setting.startswith("data.path=")),
        *(ddp if processes > 1 else []),
        *("data.path=${oc.env:PLACE}", "trainer.max_steps=6", "trainer.max_epochs=-1"),
    ]
    seen = b""
    for raising in ({}, {"RAISE": "1"}):
        done = subprocess.run(
            [*command, f"run_id={len(raising)}"],
            cwd=here,
            env=environment | raising,
            capture_output=True,
            timeout=LIMIT,
        )
        assert done.returncode == len(raising), done.stderr.decode()
        seen += done.stdout + done.stderr
    assert b"logged ***" in seen
    assert b"logged ${oc.env:PLACE}" in seen
    assert b"ValueError: no access to https://***@host with ${oc.env:PLACE}" in seen
    assert CANARY.encode() not in seen
    runs = here / "outputs" / "tiny"
    assert written_with(CANARY, here / "outputs", here / "tmp", here / "home") == []
    for run in (runs / "0", runs / "1"):
        assert any(run.glob("wandb/offline-run-*/*.wandb"))
        assert any(run.glob("tensorboard/**/events*"))
        assert Run(run).config()["data"]["path"] == "${oc.env:PLACE}"
        assert Run(run).read("data.json")["source"]["paths"] == {"train": "${oc.env:PLACE}"}
    reason = Run(runs / "1").status()["reason"]
    assert "https://***@host with ${oc.env:PLACE}" in reason


@pytest.mark.parametrize(
    "argument",
    [
        f"logger.wandb.api_key={CANARY}",
        f"logger.wandb={{password: {CANARY}}}",
        f"data.path=https://me:{CANARY}@host/text.txt",
        f"hf_token={CANARY}",
        f"logger.wandb.secret=[{CANARY}",
        f"trainer.max_steps={CANARY} data.token={CANARY}",
        f"trainer.max_epochs=${{oc.env:NOT_SET,{CANARY}}} api_key=${{oc.env:NOT_SET,{CANARY}}}",
    ],
)
def test_a_secret_on_the_command_line_is_refused_and_not_shown(
    tmp_path, monkeypatch, capsys, argument
):
    monkeypatch.chdir(tmp_path)
    several = argument.split(" ") if argument.count("=") > 1 else [argument]
    assert cli.main(["train", "logger=wandb", *several]) == 2
    said = capsys.readouterr()
    assert said.err
    assert CANARY not in said.out + said.err
    assert list(tmp_path.iterdir()) == []


# ---- what is found on disk


@pytest.fixture
def run(tmp_path) -> Run:
    return trained_run.make_run(tmp_path / "outputs")


class Payload:
    """A pickle that makes a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def commands(run: Run) -> list[list[str]]:
    return [["resume", run.id, "trainer.max_epochs=2"], ["evaluate", run.id], ["generate", run.id]]


def refused(run: Run, arguments: list[str], capsys, code: int = 2) -> str:
    """What the command line says, in this process: it would be the one that is attacked."""
    assert cli.main([*arguments, f"outputs={run.path.parents[1]}"]) == code
    return capsys.readouterr().err


def replace(run: Run, checkpoint: dict, manifest: bool = True) -> None:
    """Have a run's checkpoint be another, with a manifest that fits it or none."""
    (path,) = (run.path / "checkpoints").glob("step-*.ckpt")
    torch.save(checkpoint, path)
    path.with_suffix(".json").unlink()
    if manifest:
        plain = {"state_dict": {}, "global_step": 7, "epoch": 0}
        elsewhere = run.path / "elsewhere.ckpt"
        AtomicCheckpointIO().save_checkpoint(plain, elsewhere)
        found = Run(run.path).read("elsewhere.json")
        found |= {"bytes": path.stat().st_size}
        found |= {"sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        run.write(f"checkpoints/{path.stem}.json", found)


@pytest.mark.parametrize("place", ["state_dict", "optimizer_states", "callbacks", "loops"])
def test_a_hostile_checkpoint_runs_nothing_by_any_command(run, tmp_path, place, capsys):
    ran = tmp_path / "ran"
    state = {"state_dict": {}, "global_step": 7, "epoch": 0, "pytorch-lightning_version": "2.6.6"}
    replace(run, state | {place: [{"state": {0: Payload(ran)}}]})
    for arguments in commands(run):
        said = refused(run, arguments, capsys)
        assert "is refused: it asks for posix.system; give another one" in said
    with pytest.raises(UserError, match=r"is refused: it asks for posix\.system"):
        lmkit.load(run.path)
    assert not ran.exists()


def test_a_checkpoint_that_names_classes_makes_none(run, tmp_path):
    ran = tmp_path / "ran"
    (path,) = (run.path / "checkpoints").glob("step-*.ckpt")
    state = load_checkpoint(path)
    target = {"_target_": "os.system", "command": f"touch {ran}"}
    replace(run, state | {"hyper_parameters": target, "hparams_name": "os.system"})
    assert len(lmkit.load(run.path).score("the cat")) > 1
    assert not ran.exists()


def test_a_pickle_that_is_no_archive_is_refused(run, tmp_path):
    path = tmp_path / "plain.ckpt"
    path.write_bytes(pickle.dumps({"state_dict": Payload(tmp_path / "ran")}))
    with pytest.raises(UserError, match="cannot be read as one; give another one"):
        load_checkpoint(path)
    torch.save({"state_dict": {}}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(UserError, match="cannot be read as one; give another one"):
        load_checkpoint(path)
    assert not (tmp_path / "ran").exists()


def test_a_checkpoint_that_would_unpack_is_refused_before_it_does(tmp_path):
    plain, path = tmp_path / "plain.ckpt", tmp_path / "bomb.ckpt"
    torch.save({"state_dict": {"weight": torch.zeros(64 << 20, dtype=torch.uint8)}}, plain)
    with (
        zipfile.ZipFile(plain) as source,
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for name in source.namelist():
            target.writestr(name, source.read(name))
    plain.unlink()
    assert path.stat().st_size < 1 << 20
    program = f"""
import resource
from lmkit import cli
from lmkit.run.checkpoints import load_checkpoint
from lmkit.errors import UserError
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    load_checkpoint({str(path)!r})
except UserError as error:
    print(error)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    message, grown = done.stdout.splitlines()
    assert "bytes would unpack to 67,1" in message
    assert int(grown) < 32 << 10  # KiB


def test_a_tensor_that_claims_more_than_its_record_is_refused(tmp_path):
    plain, path = tmp_path / "plain.ckpt", tmp_path / "claims.ckpt"
    torch.save({"state_dict": {"weight": torch.arange(4.0)}}, plain)
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(path, "w") as target:
        for name in source.namelist():
            data = source.read(name)
            if name.endswith("data.pkl"):  # 4 as an opcode of one byte, and 10**9 of four
                data = data.replace(b"K\x04", b"J" + (10**9).to_bytes(4, "little"))
            target.writestr(name, data)
    with pytest.raises(UserError, match="cannot be read as one; give another one"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("!!python/object/apply:os.system ['touch {ran}']", "could not determine a constructor"),
        ("a: !!python/name:os.system", "could not determine a constructor"),
        ("{bomb}", "more than 100,000 values"),
        ("a: " + "[" * 500 + "]" * 500, "more than 50 within each other"),
        ("[1]", "config.yaml is damaged: expected a mapping, found a list"),
    ],
)
def test_a_hostile_config_of_a_run_runs_nothing(run, tmp_path, text, message):
    ran = tmp_path / "ran"
    bomb = "a0: &a0 [x, x]\n"
    bomb += "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}, *a{n - 1}]\n" for n in range(1, 30))
    (run.path / "config.yaml").write_text(text.replace("{ran}", str(ran)).replace("{bomb}", bomb))
    with pytest.raises(UserError, match=message):
        lmkit.load(run.path)
    assert not ran.exists()


@pytest.mark.parametrize(
    ("path", "target"),
    [
        ("model", "os.system"),
        ("model", "torch.hub.load"),
        ("data", "lmkit.corpus.pydocs.platform.popen"),
        ("logger.x", "subprocess.Popen"),
        ("callbacks.x", "builtins.exec"),
        ("callbacks.x.more", "os.system"),
        ("trainer.profiler", "os.system"),
        ("trainer.strategy.ddp_comm_hook", "os.system"),
    ],
)
def test_a_hostile_target_in_the_config_of_a_run_is_never_called(
    run, tmp_path, path, target, capsys
):
    ran = tmp_path / "ran"
    config = run.config()
    node = config
    for part in path.split("."):
        node = node.setdefault(part, {})
    node |= {"_target_": target, "command": f"touch {ran}"}
    (run.path / "config.yaml").write_text(yaml.safe_dump(config))
    for arguments in commands(run)[:2]:
        assert "_target_" in refused(run, arguments, capsys)
    with pytest.raises(UserError):
        lmkit.load(run.path)
    assert not ran.exists()


def test_resolvers_in_the_config_of_a_run_are_text(run, monkeypatch):
    monkeypatch.setenv("DB_PASSWORD", CANARY)
    config = run.config()
    tricks = ("${oc.decode:'${oc.env:DB_PASSWORD}'}", "${ oc.env:DB_PASSWORD}", "${oc.create:1}")
    config["callbacks"] = {
        str(place): {
            "_target_": "lmkit.training.callbacks.samples.Samples",
            "prompt": trick,
            "num_tokens": 1,
            "seed": 1,
        }
        for place, trick in enumerate(tricks)
    }
    (run.path / "config.yaml").write_text(yaml.safe_dump(config))
    read = compose([], base=run.path / "config.yaml").config["callbacks"]
    assert [node["prompt"] for node in read.values()] == list(tricks)


# ---- links


def test_a_link_out_of_the_run_directory_is_refused_before_it_is_followed(run, tmp_path, capsys):
    precious = tmp_path / "precious"
    precious.write_text("mine\n")
    for name in ("metrics.jsonl", ".lock", "logs", "checkpoints/last.ckpt"):
        link = run.path / name
        link.unlink(missing_ok=True)
        link.symlink_to(precious if name != "logs" else tmp_path)
        assert f"{link} is a link to {link.resolve()}, out of the run directory" in refused(
            run, commands(run)[0], capsys
        )
        link.unlink()
    assert precious.read_text() == "mine\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["outputs", "precious"]


def test_a_run_that_is_a_link_is_read_and_not_written(run, tmp_path, capsys):
    elsewhere = tmp_path / "elsewhere"
    run.path.rename(elsewhere)
    run.path.symlink_to(elsewhere)
    before = {path: path.stat().st_mtime_ns for path in elsewhere.rglob("*")}
    sentence = f"{run.path} is a link to {elsewhere}: a run writes inside"
    assert sentence in refused(run, commands(run)[0], capsys)
    assert sentence in refused(run, ["score", run.id, "text=the cat"], capsys)
    refused(run, ["evaluate", run.id], capsys, code=0)
    assert {path: path.stat().st_mtime_ns for path in elsewhere.rglob("*")} == before


def test_a_page_is_not_written_through_a_link(run, tmp_path, capsys):
    (tmp_path / "elsewhere").mkdir()
    (run.path / "scores").symlink_to(tmp_path / "elsewhere")
    assert "out of the run directory" in refused(run, ["score", run.id, "text=the cat"], capsys)
    assert list((tmp_path / "elsewhere").iterdir()) == []
