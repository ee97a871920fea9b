"""The command line: what it calls, what it prints, what it imports, how it ends."""

import functools
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from trained_run import real_stdout

from lmkit import cli, usage
from lmkit.command import MODULES, Command, commands
from lmkit.config.check import check
from lmkit.config.compose import compose
from lmkit.config.keys import function_keys
from lmkit.run import Run

REPOSITORY = Path(__file__).resolve().parents[2]
HEAVY = {"torch", "lightning", "wandb", "trackio", "datasets", "tokenizers", "pyarrow"}
HEAVY |= {"transformers", "torchmetrics"}


def lmkit(*argv: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "lmkit", *argv]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=120)


def python(code: str, **options: object) -> subprocess.Popen[str]:
    """A process that runs `code`, with `main` and a replaceable command `list` at hand."""
    head = "import os, subprocess, sys, time, lmkit.commands.list; from lmkit.cli import main\n"
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-c", head + code], **pipes, **options)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run directory that holds a config and, by its name, a checkpoint."""
    path = tmp_path / "outputs" / "quick" / "a1"
    (path / "checkpoints").mkdir(parents=True)
    (path / "checkpoints" / "last.ckpt").touch()
    config, _ = check(compose(["model.dropout=0.5"]))
    (path / "config.yaml").write_text(yaml.safe_dump(config))
    return path


def test_help_and_list_import_nothing_heavy():
    asked = [
        [],
        ["--help"],
        ["--version"],
        ["list"],
        ["list", "data=files", "trainer"],
        *([name, "--help"] for name in MODULES),
    ]
    code = f"""
for argv in {asked}:
    assert main(argv) == 0, argv
heavy = {HEAVY} & set(sys.modules)
assert not heavy, heavy
"""
    with python(code) as process:
        _, error = process.communicate(timeout=60)
    assert process.returncode == 0, error


def test_the_overview_has_a_line_for_every_command(capsys):
    assert cli.main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name, command in commands().items():
        (line,) = [line for line in lines if line.split()[:1] == [name]]
        assert command.purpose in line
        assert len(line) <= 100


def test_help_shows_a_commands_own_keys_as_its_signature_has_them(capsys):
    assert cli.main(["generate", "--help"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("usage: lmkit generate RUN [key=value ...]\n")
    assert "  num_tokens=50    (int) of each sample, at most\n" in out
    assert "  top_k=null       (int | null) only the k likeliest tokens\n" in out
    assert "--cfg" not in out.splitlines()[-1]  # it composes no config


@pytest.mark.parametrize("name", MODULES)
def test_help_has_a_line_for_each_key_and_only_the_flags_that_are_taken(name, capsys):
    command = commands()[name]
    assert cli.main([name, "--help"]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 100
    for key, found in function_keys(command.module, name).items():
        assert found.line, key
        assert f"\n  {key}=" in out
    composes = command.takes_config and "run" not in command.words
    assert ("\n  --config-name" in out) == ("\n  --cfg" in out) == composes
    assert ("--multirun" in out) == (name == "train")
    assert ("keys of the config" in out) == command.takes_config


EXAMPLES = [
    example
    for command in commands().values()
    for example in usage.examples(command)
    if example.startswith("lmkit ")
]


def test_every_command_has_an_example():
    assert {example.split()[1] for example in EXAMPLES} == {*MODULES} - {"completion"}


@pytest.mark.parametrize("example", EXAMPLES)
def test_the_examples_of_help_are_understood(example, run, tmp_path, monkeypatch):
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("Some words.\n\nAnd more of them.\n")
    monkeypatch.chdir(tmp_path)
    called = []

    def load(command):
        function = load_really(command)

        @functools.wraps(function)
        def stub(*given, **keys):
            called.append(command.name)

        return stub

    load_really = Command.load
    monkeypatch.setattr(Command, "load", load)
    monkeypatch.setattr("lmkit.sweep.multirun.multirun", lambda argv: called.append("train"))
    assert cli.main(shlex.split(example)[1:]) == 0
    assert called == [example.split()[1]]


def test_list_shows_every_option_with_its_purpose(capsys):
    assert cli.main(["list"]) == 0
    out = capsys.readouterr().out
    assert "\nmodel=\n" in out
    assert re.search(r"\n  gru +Gated recurrent units \(Cho et al. 2014\)\n", out)
    assert re.search(rf"\n  doctor +{re.escape(commands()['doctor'].purpose)}\n", out)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["trian"], "lmkit trian: no such command; did you mean train?"),
        (
            ["generate"],
            "lmkit generate needs a RUN: a run directory, an id, the beginning of one, or latest",
        ),
        (
            ["generate", "prompt=x", "latest"],
            "lmkit generate needs a RUN: a run directory, an id, the beginning of one, or latest, "
            "before prompt=x",
        ),
        (["analyze"], "lmkit analyze needs a kind"),
        (["list", "modle"], "1 mistake:\n  modle: no such group; did you mean model?"),
        (
            ["list", "model=ltsm", "data=fles"],
            "2 mistakes:\n  model=ltsm: no such option of model; did you mean lstm?\n"
            "  data=fles: no such option of data; did you mean files?",
        ),
        (["dashboard", "prot=1"], "1 mistake:\n  prot is not a key; did you mean port?"),
        (["dashboard", "port=http"], "1 mistake:\n  port=http: expected int, found text"),
        (
            ["dashboard", "--cfg", "job"],
            "lmkit dashboard composes no config for Hydra's flags to show",
        ),
        (
            ["doctor", "-m", "seed=1,2"],
            "--multirun is for lmkit train, with no other of Hydra's flags that show",
        ),
    ],
)
def test_a_mistake_is_one_message_and_exit_code_2(argv, message, capsys):
    assert cli.main(argv) == 2
    captured = capsys.readouterr()
    assert captured.err == f"error: {message}\n"
    assert captured.out == ""


def test_every_mistake_of_a_config_in_a_real_process(tmp_path):
    argv = ["model.hiden_size=3", "trainer.devices=3", "trainer=ddp_cpu", "optimizer.lr=fast"]
    done = lmkit("train", *argv, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == (
        "error: 3 mistakes:\n"
        "  model.hiden_size is not a key of lmkit.model.LSTM; did you mean model.hidden_size?\n"
        "  optimizer.lr=fast: expected float, found text\n"
        "  data.batch_size=20 but there are 3 processes: the lanes must divide by their number; "
        "set data.batch_size=18 or 21, or the processes to one of 1, 2, 4, 5, 10, 20\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_train_py_works_from_any_directory_and_hydra_leaves_no_litter(tmp_path):
    command = [sys.executable, str(REPOSITORY / "train.py"), "--cfg", "job", "model=gru", "modle=1"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert done.returncode == 0, done.stderr
    config = yaml.safe_load(done.stdout)
    assert config["model"]["_target_"] == "lmkit.model.GRU"
    assert config["model"]["recurrent_init"] == "uniform"  # of the signature
    assert config["modle"] == 1
    assert list(tmp_path.iterdir()) == []


def test_an_analysis_starts_from_the_config_of_its_name(tmp_path):
    done = lmkit("analyze", "probe", "--cfg", "job", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert yaml.safe_load(done.stdout)["data"]["_target_"] == "lmkit.corpus.MemoryProbe"


@pytest.mark.parametrize("flags", [["--info", "defaults"], ["--hydra-help"], ["--cfg", "hydra"]])
def test_hydras_flags_are_hydras(flags, tmp_path):
    done = lmkit("train", *flags, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_command_with_its_exit_code(number, code):
    with python(
        "def wait(selected, commands, config_dir=None):\n"
        "    print('ready', flush=True)\n"
        "    time.sleep(60)\n"
        "lmkit.commands.list.list = wait\n"
        "sys.exit(main(['list']))"
    ) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        _, error = process.communicate(timeout=20)
    assert process.returncode == code
    assert error == ""


def test_a_defect_shows_its_traceback_and_exits_with_1():
    process = python(
        "def fail(selected, commands, config_dir=None): raise RuntimeError('a defect')\n"
        "lmkit.commands.list.list = fail\n"
        "sys.exit(main(['list']))"
    )
    _, error = process.communicate(timeout=20)
    assert process.returncode == 1
    assert error.endswith("RuntimeError: a defect\n")


def test_json_is_all_there_is_on_stdout():
    process = python(
        "def chatter(selected, commands, config_dir=None):\n"
        "    print('from python')\n"
        "    subprocess.run(['echo', 'from a child'])\n"
        "    os.write(1, b'from below')\n"
        "    return {'nll': float('nan'), 'words': 'ü'}\n"
        "lmkit.commands.list.list = chatter\n"
        "sys.exit(main(['list', 'format=json']))"
    )
    out, error = process.communicate(timeout=20)
    assert json.loads(out) == {"nll": None, "words": "ü"}
    assert out.startswith("{")
    for words in ("from python", "from a child", "from below"):
        assert words in error


def test_json_and_a_mistake_leave_stdout_empty():
    done = lmkit("list", "format=json", "foo=1")
    assert (done.returncode, done.stdout) == (2, "")


def test_a_command_gets_its_run_its_config_and_its_own_keys(run, monkeypatch, tmp_path):
    called = {}

    def fake(run, config, *, prompt: str = "", num_tokens: int = 50, seed: int = 1) -> None:
        called.update(run=run.path, config=config, prompt=prompt, num_tokens=num_tokens, seed=seed)

    monkeypatch.setattr("lmkit.commands.generate.generate", fake)
    monkeypatch.chdir(tmp_path)
    argv = ["prompt=It's, [so]", "num_tokens=1e1", "seed=7", "kernels=torch", "format=text"]
    for which, places in (
        ("latest", [f"outputs={tmp_path / 'outputs'}"]),
        ("a", [f"outputs={tmp_path / 'outputs'}"]),
        ("a", [f"++outputs={tmp_path / 'outputs'}"]),
        ("a", ["~outputs"]),
        (str(run), []),
    ):
        called.clear()
        assert cli.main(["generate", which, *places, *argv]) == 0
        assert called["run"] == run
        assert (called["prompt"], called["num_tokens"], called["seed"]) == ("It's, [so]", 10, 7)
        assert called["config"]["seed"] == 1
        assert called["config"]["model"]["dropout"] == 0.5
        assert called["config"]["kernels"] == "torch"


def test_latest_is_the_newest_run_that_the_command_can_use(run, monkeypatch, tmp_path, caplog):
    outputs = tmp_path / "outputs"
    newer = Run.create(outputs, "quick", "b2", yaml.safe_load((run / "config.yaml").read_text()))
    found = []

    def fake(run, config, overrides=()):
        found.append(run.id)

    for command in ("generate.generate", "evaluate.evaluate", "score.score", "verify.verify"):
        monkeypatch.setattr(f"lmkit.commands.{command}", lambda run, config: fake(run, config))
        assert cli.main([command.partition(".")[0], "latest", f"outputs={outputs}"]) == 0
    monkeypatch.setattr("lmkit.commands.train.resume", fake)
    caplog.set_level("INFO", "lmkit")
    assert cli.main(["resume", "latest", f"outputs={outputs}"]) == 0  # b2 is held by this process
    assert found == ["a1"] * 5
    what = ["has no checkpoint"] * 4 + ["is still running"]
    assert caplog.messages == [f"latest is quick/a1: the newer quick/b2 {why}" for why in what]
    newer.release()
    assert cli.main(["resume", "latest", f"outputs={outputs}"]) == 0
    assert found[5:] == ["b2"]  # nothing was trained there yet: it can begin again


def test_no_run_that_can_be_used(run, tmp_path, capsys):
    (run / "checkpoints" / "last.ckpt").unlink()
    assert cli.main(["generate", "latest", f"outputs={tmp_path / 'outputs'}"]) == 2
    assert capsys.readouterr().err == (
        f"error: RUN=latest: none of the 1 runs in {tmp_path / 'outputs'} can be used; "
        "the newest, quick/a1, has no checkpoint\n"
    )


def test_a_run_in_a_directory_named_like_a_key(run, monkeypatch, tmp_path):
    place = tmp_path / "lr=20"
    run.rename(place)
    monkeypatch.chdir(tmp_path)
    found = []
    monkeypatch.setattr(
        "lmkit.commands.generate.generate", lambda run, config: found.append(run.path)
    )
    assert cli.main(["generate", "lr=20"]) == 0
    assert found == [place]


def test_doctors_numbers_are_numbers_in_json(capfd, tmp_path, monkeypatch):
    monkeypatch.setattr("lmkit.training.estimate.SECONDS", 0.0)
    with real_stdout():
        assert cli.main(["doctor", f"outputs={tmp_path}", "format=json"]) == 0
    training = json.loads(capfd.readouterr().out)["training"]
    assert all(type(value) in (int, float) for value in training.values())
    rate = training["epoch_tokens"] / training["epoch_seconds"]
    assert rate == pytest.approx(training["tokens_per_second"])


def test_doctor_reports_and_fails_with_the_mistakes(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("lmkit.training.estimate.SECONDS", 0.0)
    assert cli.main(["doctor", f"outputs={tmp_path}"]) == 0
    out = capsys.readouterr().out
    for word in ("torch", "num_cpus", "precision", "logged in", "writable", "processes"):
        assert word in out
    for word in ("kernels", "fp32 products", "tokens per second", "an epoch", "MiB at most"):
        assert word in out
    assert [path.name for path in tmp_path.iterdir()] == [".cache"]  # the text, for train to find
    assert cli.main(["doctor", f"outputs={tmp_path}", "probe=false"]) == 0
    assert "an epoch" not in capsys.readouterr().out
    assert cli.main(["doctor", "modle=1", "outputs=/proc/nowhere"]) == 2
    captured = capsys.readouterr()
    assert "versions" in captured.out
    assert captured.err == (
        "error: 2 mistakes:\n"
        "  outputs=/proc/nowhere: cannot be written\n"
        "  modle is not a key; did you mean model?\n"
    )
    assert not Path("/proc/nowhere").exists()


def test_a_reader_that_has_seen_enough_ends_the_command_quietly() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "lmkit", "list"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(60) == 0


def test_a_terminal_of_0_columns_is_one_of_unknown_size(monkeypatch):
    monkeypatch.setenv("COLUMNS", "0")
    monkeypatch.setenv("LINES", "40")
    assert cli.main(["--version"]) == 0
    assert "COLUMNS" not in os.environ
    assert os.environ["LINES"] == "40"
