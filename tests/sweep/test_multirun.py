"""`lmkit train -m`: each job is the run that its overrides alone would be, under any launcher."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import example, given
from hypothesis import strategies as st
from journey import LIMIT, assert_same_state, last, lmkit, rows, start, wait_for_rows
from trained_run import real_stdout

from lmkit import cli
from lmkit.config.grammar import normalise, spell
from lmkit.config.groups import CONF, group_options
from lmkit.run import Run
from lmkit.sweep import job as job_module
from lmkit.sweep import multirun
from lmkit.sweep.job import Job, Outcome, ask_to_stop

GROUPS = group_options([CONF])
TEXT = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"))
# Two of them, so that a launcher's own setting (1) would be seen.
THREADS = "2"


def sent(*argv: str) -> list[list[str]]:
    """The arguments of each job, by the way that they take through Hydra."""
    lines = [normalise(argument, GROUPS) for argument in argv]
    (jobs,) = BasicSweeper.split_arguments(OverridesParser.create().parse_overrides(lines), None)
    return [[spell(line, GROUPS) for line in job] for job in jobs]


@given(TEXT)
@example('a, b\'s "c" [d] (e)=1..2')
@example("\\${seed} ${seed} \\\\${oc.env:X} \\")
@example("")
def test_a_text_reaches_every_job_as_it_was_written(text):
    given = [f"data.path={text}", f"callbacks.samples.prompt={text}", f"outputs={text}"]
    # Quotes around all of a pattern are Hydra's, as "null" without them is.
    if not (text == "null" or (len(text) > 1 and text[0] == text[-1] and text[0] in "'\"")):
        given += [f"data.heading={text}", f"data.quote={text}"]
    assert sent(*given, "seed=1,2") == [[*given, "seed=1"], [*given, "seed=2"]]


@pytest.mark.parametrize(
    ("given", "jobs"),
    [
        (["optimizer.lr=1e-3,1e-2"], [["optimizer.lr=0.001"], ["optimizer.lr=0.01"]]),
        (["model=lstm,gru"], [["model=lstm"], ["model=gru"]]),
        (["seed=range(1,4)"], [["seed=1"], ["seed=2"], ["seed=3"]]),
        (["logger=[wandb,tensorboard]"], [["logger=[wandb,tensorboard]"]]),
        (["data.quote='\"'"], [["data.quote='\"'"]]),
        (["data.heading=null"], [["data.heading=null"]]),
        (["data.path=[a.txt,b]"], [["data.path=[a.txt,b]"]]),
        (["~callbacks.samples"], [["~callbacks.samples=null"]]),
        (["+model.x=1", "name='a b'"], [["+model.x=1", "name='a b'"]]),
        (["logger={a: {b: 1}}"], [["logger={a:{b:1}}"]]),
        (["model=lstm,gru", "seed=1"], [["model=lstm", "seed=1"], ["model=gru", "seed=1"]]),
    ],
)
def test_values_are_multiplied_out_and_mean_the_same_to_the_command_line(given, jobs):
    assert sent(*given) == jobs
    for job in jobs:  # a job's own command line is Hydra's line again
        assert sent(*job) == [job]


@pytest.fixture
def fake(monkeypatch) -> list[list[str]]:
    """The arguments of the jobs; nothing is trained, job 0 fails, job 1 gets an nll."""
    called = []

    def train(self: Job, number: int, arguments: list[str]) -> Outcome:
        called.append(arguments)
        if number == 0:
            return Outcome(number, f"{self.identity}-0", arguments, 2, "no such corpus")
        return Outcome(number, f"{self.identity}-{number}", arguments, 0, run="x", nll=0.0)

    monkeypatch.setattr(Job, "_train", train)
    return called


def test_jobs_that_failed_are_in_the_json_too(fake, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    with real_stdout():
        assert cli.main(["train", "-m", "seed=1,2", "run_id=s", "format=json"]) == 2
    captured = capfd.readouterr()
    jobs = json.loads(captured.out)["jobs"]
    assert [(job["exit_code"], job["why"]) for job in jobs] == [(2, "no such corpus"), (0, "")]
    assert "error: 1 of 2 jobs failed, see " in captured.err


def test_a_command_line_reaches_its_jobs_through_hydra(fake, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    common = ["data=files", "data.path=it's, [so] ${seed}", "outputs=my $out, (1)"]
    common += ["data.unit=heading", "data.heading='${oc.env:LMKIT_TEST_HEADING}'", "name=x"]
    monkeypatch.setenv("LMKIT_TEST_HEADING", "hidden")
    (tmp_path / "it's, [so] ${seed}").write_text("a text")
    assert cli.main(["train", "-m", *common, "seed=1,2,3", "run_id=s"]) == 2
    assert fake == [[*common, f"seed={n}"] for n in (1, 2, 3)]
    captured = capsys.readouterr()
    assert captured.out == (
        "s-0  seed=1  failed with exit code 2: no such corpus\n"
        "s-1  seed=2  best val perplexity 1.00\n"
        "s-2  seed=3  best val perplexity 1.00\n"
    )
    directory = tmp_path / "my $out, (1)" / "multirun" / "s"
    log = directory / "0" / "log.txt"
    assert captured.err.endswith(f"error: 1 of 3 jobs failed, see {log}\n")
    assert Run.all(directory.parents[1]) == [], "what Hydra writes is no run"
    assert [outcome.job for outcome in Outcome.all(directory)] == [0, 1, 2]


def test_a_users_own_groups_are_the_jobs_too(fake, tmp_path, monkeypatch):
    folder = tmp_path / "my conf" / "model"
    folder.mkdir(parents=True)
    for name in ("one", "two"):
        (folder / f"{name}.yaml").write_text("_target_: lmkit.model.LSTM\nhidden_size: 8\n")
    monkeypatch.chdir(tmp_path)
    argv = ["--config-dir", "my conf", "model=glob([one,two])", "seed=3"]
    assert cli.main(["train", "-m", *argv]) == 2  # job 0 is made to fail
    assert fake == [[f"model={name}", "seed=3"] for name in ("one", "two")]


def test_a_sweeper_is_told_what_a_job_came_to(fake, tmp_path):
    found = []
    job = Job("s", tmp_path, tmp_path, None, [], {})

    def record(config: object) -> float:
        found.append(job(config))
        return found[-1]

    lines = [*multirun._of_hydra([f"hydra.sweep.dir={tmp_path}"], "s"), "seed=1,2"]
    with multirun._hydra([CONF]) as hydra:
        hydra.multirun("train", record, lines)
    assert found == [float("inf"), 0.0]


def test_an_id_begins_the_ids_of_the_runs_and_two_sweeps_never_share_one(
    fake, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert cli.main(["train", "-m", "seed=1,2"]) == 2
    one, other = (tmp_path / "outputs" / "multirun").iterdir()
    ids = [outcome.run_id for place in (one, other) for outcome in Outcome.all(place)]
    assert ids == [f"{place.name}-{n}" for place in (one, other) for n in (0, 1)]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["model.hiden_size=3", "seed=1,2", "optimizer.lr=fast,0.1", "modle=1"],
            "3 mistakes:\n"
            "  modle is not a key; did you mean model?\n"
            "  model.hiden_size is not a key of lmkit.model.LSTM; did you mean model.hidden_size?\n"
            "  job 0, 2: optimizer.lr=fast: expected float, found text\n",
        ),
        (["model=lstm,grru"], "1 mistake:\n  job 1: model=grru: no such option"),
        (
            ["seed=1,2", "run_id=a,b"],
            "1 mistake:\n  run_id=a,b: one id for the sweep; its runs are ID-0, ID-1, ...",
        ),
        (["seed=1,2", "run_id=/x"], "run_id=/x: expected letters"),
        (["seed=(1,2"], "1 mistake:\n  seed=(1,2: "),
        (
            ["seed=interval(1,2)"],
            "seed=interval(1,2): train -m takes values one by one; lmkit sweep draws them",
        ),
        (["hydra/launcher=jobslib"], "In 'hydra/config': Could not find 'hydra/launcher/jobslib'"),
        (["hydra.sweep.dri=x"], "Could not override 'hydra.sweep.dri'"),
        (
            ["hydra/launcher=submitit_local", "hydra.launcher.tasks_per_node=2"],
            "hydra.launcher.tasks_per_node=2: a job is one task",
        ),
        (["model=glob(x*)"], "model=glob(x*): there is no such value, and so nothing to run"),
        (
            ["model.num_layers=range(8,8)"],
            "model.num_layers=range(8,8): there is no such value, and so nothing to run",
        ),
        (
            ["model.num_layers=range(0,5,0)"],
            "model.num_layers=range(0,5,0): a range goes from one number to another",
        ),
        (["outputs=/proc/x"], "cannot write the sweep's directory /proc/x/multirun/"),
        (["--config-dir", "gone"], "--config-dir gone: no such directory"),
        (["--cfg", "job"], "--multirun is for lmkit train, with no other of Hydra's flags"),
    ],
)
def test_mistakes_of_all_jobs_are_told_before_any_begins(
    argv, message, fake, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", "-m", *argv]) == 2
    assert f"error: {message}".rstrip() in capsys.readouterr().err
    assert fake == []
    assert list(tmp_path.iterdir()) == []


def test_a_launcher_that_is_not_installed_names_its_extra(monkeypatch, capsys):
    monkeypatch.setattr(multirun, "find_spec", lambda name: None)
    assert cli.main(["train", "-m", "hydra/launcher=submitit_slurm"]) == 2
    assert capsys.readouterr().err == (
        "error: hydra/launcher=submitit_slurm needs a package: "
        "pip install 'recurrent-lmkit[slurm]'\n"
    )


def test_only_one_process_sweeps(monkeypatch, capsys):
    torchrun = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
    for key, value in {"TORCHELASTIC_RUN_ID": "1", **torchrun}.items():
        monkeypatch.setenv(key, value)
    assert cli.main(["train", "-m", "seed=1,2"]) == 2
    assert "call it as one process" in capsys.readouterr().err


def test_a_stopped_sweep_begins_no_job(tmp_path):
    ask_to_stop(tmp_path, signal.SIGINT)
    outcome = Job("s", tmp_path, tmp_path, None, [], {})._train(0, [])
    assert (outcome.exit_code, outcome.why) == (None, "not begun")


def test_a_job_is_in_the_place_that_a_command_alone_has(monkeypatch, tmp_path):
    left = {"SLURM_NTASKS": "1", "SLURM_STEP_ID": "0", "RANK": "3", "LOCAL_RANK": "3"}
    left |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "VECLIB_MAXIMUM_THREADS": "1"}
    left |= {"MASTER_PORT": "1", "SUBMITIT_EXECUTOR": "local", "TORCHELASTIC_RUN_ID": "x"}
    kept = {"CUDA_VISIBLE_DEVICES": "1", "ORANK": "x", "WANDB_MODE": "offline"}
    for key, value in (left | kept).items():
        monkeypatch.setenv(key, value)
    found = Job("s", tmp_path, tmp_path, None, [], {"OMP_NUM_THREADS": "7"})._environment()
    assert found["OMP_NUM_THREADS"] == "7"
    assert not (left.keys() - {"OMP_NUM_THREADS"}) & found.keys()
    assert kept.items() <= found.items()


@pytest.fixture(scope="module")
def short(settings, text, tmp_path_factory) -> list[str]:
    """A few steps, of a text in a file whose name Hydra's grammar has no place for."""
    path = shutil.copy(text, tmp_path_factory.mktemp("short") / "it's, [a] text (1).txt")
    keys = ("data.path", "trainer.max_epochs")
    kept = [setting for setting in settings if not setting.startswith(keys)]
    return [*kept, f"data.path={path}", "trainer.max_steps=12", "trainer.max_epochs=1"]


TWO = ["trainer=ddp_cpu", "trainer.devices=2"]


@pytest.fixture(scope="module")
def alone(short, tmp_path_factory) -> list[Path]:
    """Two runs of two processes each, without a sweep."""
    place = tmp_path_factory.mktemp("alone")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", THREADS)
        for seed in (1, 2):
            lmkit("train", *short, *TWO, f"seed={seed}", f"run_id=alone-{seed}", cwd=place)
    return [place / "outputs" / "tiny" / f"alone-{seed}" for seed in (1, 2)]


@pytest.mark.parametrize(
    "launcher",
    [
        pytest.param("joblib", marks=pytest.mark.slow),
        pytest.param("submitit_local", marks=pytest.mark.slow),
        pytest.param("ray", marks=pytest.mark.slow),
    ],
)
def test_a_job_of_two_processes_is_the_run_that_it_is_alone(
    launcher, alone, short, tmp_path, monkeypatch
):
    monkeypatch.setenv("OMP_NUM_THREADS", THREADS)
    arguments = [*short, *TWO, "seed=1,2", "run_id=s", f"hydra/launcher={launcher}"]
    done = lmkit("train", "-m", *arguments, "format=json", cwd=tmp_path)
    jobs = json.loads(done.stdout)["jobs"]
    assert [job["overrides"][-1] for job in jobs] == ["seed=1", "seed=2"]
    for number, one in enumerate(alone):
        other = tmp_path / "outputs" / "tiny" / f"s-{number}"
        assert_same_run(one, other)
        assert jobs[number]["run"] == str(other)
        assert jobs[number]["nll"] == Run(one).read("summary.json")["best/val/nll"]
    assert "Warning" not in done.stderr
    assert "Traceback" not in done.stderr


def assert_same_run(one: Path, other: Path) -> None:
    """All but times and names: rows, weights, config and what the environment says of threads."""
    assert rows(one) == rows(other)
    assert_same_state(last(one), last(other))
    for file, keys in (
        ("config.yaml", lambda config: config | {"outputs": None, "run_id": None}),
        ("environment.json", lambda environment: environment["threads"]),
    ):
        assert keys(Run(one).read(file)) == keys(Run(other).read(file))
    assert Run(one).read("environment.json")["threads"]["OMP_NUM_THREADS"] == THREADS


def test_a_job_that_fails_stops_no_other(short, tmp_path):
    """It diverges; the others, here of other models, end as alone."""
    arguments = [*short, "optimizer=sgd", "optimizer.lr=1e30,0.1", "run_id=s"]
    done = lmkit("train", "-m", *arguments, cwd=tmp_path, code=1)
    first, second = done.stdout.splitlines()
    assert first.startswith("s-0  optimizer.lr=1e+30  failed with exit code 1: ")
    assert second.startswith("s-1  optimizer.lr=0.1  best val perplexity ")
    log = tmp_path / "outputs" / "multirun" / "s" / "0" / "log.txt"
    assert f"error: 1 of 2 jobs failed, see {log}\n" in done.stderr
    assert "\nerror: the loss or its gradient is not finite " in log.read_text()
    assert "Traceback" not in log.read_text()
    assert [run.status()["status"] for run in Run.all(tmp_path / "outputs")] == [
        "failed",
        "finished",
    ]


@pytest.mark.slow
@pytest.mark.faults
@pytest.mark.parametrize(
    ("launcher", "signum"),
    [
        ("basic", signal.SIGINT),
        ("joblib", signal.SIGINT),
        ("submitit_local", signal.SIGINT),
        ("ray", signal.SIGTERM),
    ],
)
def test_a_stopped_sweep_saves_and_goes_on(launcher, signum, settings, finished, tmp_path):
    """Ctrl-C in a terminal goes to all that the sweep has started, SIGTERM to it alone."""
    whole, _ = finished
    arguments = [*settings, "seed=1,2", "run_id=s", f"hydra/launcher={launcher}"]
    process = subprocess.Popen(
        [sys.executable, "-m", "lmkit", "train", "-m", *arguments],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    first, second = (tmp_path / "outputs" / "tiny" / f"s-{number}" for number in (0, 1))
    begun = [first] if launcher == "basic" else [first, second]
    for run in begun:
        wait_for_rows(process, run, 3)
    send = os.kill if signum == signal.SIGTERM else os.killpg
    send(process.pid, signum)
    out, err = process.communicate(timeout=LIMIT)
    assert process.returncode == 128 + signum, err
    name = signal.Signals(signum).name
    assert f"stopped by {name}; to go on: the same command with run_id=s\n" in err
    assert f"s-0  seed=1  stopped by {name}; to go on: lmkit resume s-0\n" in out
    assert ("s-1  seed=2  not begun\n" in out) == (launcher == "basic")
    assert "Traceback" not in err
    assert [Run(run).status()["status"] for run in begun] == ["stopped"] * len(begun)
    done = lmkit("train", "-m", *arguments, cwd=tmp_path)
    assert len(done.stdout.splitlines()) == 2
    assert rows(first) == rows(whole)
    assert_same_state(last(first), last(whole))


@pytest.mark.slow
def test_what_a_sweep_has_started_ends_with_it(settings, tmp_path):
    process = start("train", "-m", *settings, "seed=1,2", "run_id=s", cwd=tmp_path)
    run = tmp_path / "outputs" / "tiny" / "s-0"
    wait_for_rows(process, run, 3)
    process.kill()
    process.communicate(timeout=LIMIT)
    while Run(run).held():
        pass
    assert Run(run).status()["status"] == "stopped"


@pytest.mark.parametrize("error", [SystemExit, RuntimeError])
def test_a_launcher_that_ends_a_job_lets_its_run_save(error, tmp_path, monkeypatch):
    """SystemExit, after which submitit begins the job again, is not caught, all else is told."""

    def end(*_: object) -> None:
        raise error("no time left")

    script = tmp_path / "lmkit.py"  # `python -m lmkit`, begun in its directory
    script.write_text(
        "import pathlib, signal, sys, time\n"
        "def save(*_): pathlib.Path('saved').touch(); sys.exit(143)\n"
        "signal.signal(signal.SIGTERM, save)\n"
        "pathlib.Path('begun').touch()\n"
        "time.sleep(60)\n"
    )
    (tmp_path / "0").mkdir()
    before = signal.signal(signal.SIGALRM, end)
    try:
        with monkeypatch.context() as patch:
            attend = job_module._attend

            def begun(process: subprocess.Popen[bytes], directory: Path) -> bytes:
                while not (tmp_path / "begun").exists():
                    time.sleep(0.01)
                signal.setitimer(signal.ITIMER_REAL, 0.1)
                return attend(process, directory)

            patch.setattr(job_module, "_attend", begun)
            job = Job("s", tmp_path, tmp_path, None, [], {})
            if error is SystemExit:
                with pytest.raises(SystemExit):
                    job._train(0, [])
            else:
                outcome = job._train(0, [])
                assert (outcome.exit_code, outcome.run) == (143, None)
                assert outcome.why == "ended by its launcher: no time left"
    finally:
        signal.signal(signal.SIGALRM, before)
    assert (tmp_path / "saved").exists()
