"""`lmkit sweep` with real processes: exactly as many trials as asked for, each a run as alone."""

import json
import os
import signal
import time
from pathlib import Path

import pytest
import yaml
from damages import DAMAGES
from journey import LIMIT, lmkit, rows, start

from lmkit.config.check import check
from lmkit.config.compose import compose
from lmkit.errors import UserError
from lmkit.run import Run
from lmkit.sweep.driver import Sweep
from lmkit.sweep.preflight import check_same, gpu_slots, read_values
from lmkit.sweep.report import draw, results
from lmkit.sweep.search import split
from lmkit.sweep.study import Study


def trials(place: Path, identity: str) -> list[dict]:
    file = place / "outputs" / "tiny" / f"{identity}-sweep" / "sweep.json"
    return json.loads(file.read_text())["trials"] if file.exists() else []


def outcomes(place: Path, identity: str) -> list[str]:
    return [trial["outcome"] for trial in trials(place, identity)]


def wait_for(condition) -> None:
    deadline = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def run_of(place: Path, trial: dict) -> Path:
    return place / "outputs" / trial["run"]


@pytest.mark.slow
def test_12_trials_killed_in_the_middle_end_as_12(tmp_path, settings):
    command = [
        *("sweep", *settings, "run_id=s", "trainer.max_epochs=2", "sampler=random"),
        *("num_trials=12", "parallel=2", "optimizer.lr=tag(log,interval(1e-4,1e-1))"),
        *("model.hidden_size=8,12", "model.tie_weights=false"),
    ]
    process = start(*command, cwd=tmp_path)
    wait_for(lambda: outcomes(tmp_path, "s").count("finished") >= 4)
    wait_for(lambda: "running" in outcomes(tmp_path, "s"))
    started = [t for t in trials(tmp_path, "s") if t["outcome"] == "running"]
    wait_for(lambda: all((run_of(tmp_path, t) / "metrics.jsonl").exists() for t in started))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    before = trials(tmp_path, "s")
    done = lmkit(*command, "format=json", cwd=tmp_path)
    found = json.loads(done.stdout)
    assert found["counts"] == {"finished": 12}
    assert [trial["number"] for trial in found["trials"]] == list(range(12))
    assert [t["values"] for t in found["trials"][: len(before)]] == [t["values"] for t in before]
    runs = sorted(p.name for p in (tmp_path / "outputs" / "tiny").glob("s-???"))
    assert runs == [f"s-{number:03d}" for number in range(12)]
    assert found["best"]["value"] == min(trial["value"] for trial in found["trials"])
    # One that was interrupted is what it is alone, and none has seen the test split.
    cut = next(t for t in found["trials"] if t["number"] == started[0]["number"])
    overrides = yaml.safe_load((run_of(tmp_path, cut) / "overrides.yaml").read_text())
    lines = [line for line in overrides if isinstance(line, str)]  # of the first command
    lmkit("train", *lines, "run_id=alone", cwd=tmp_path)
    alone = tmp_path / "outputs" / "tiny" / "alone"
    assert rows(alone) == rows(run_of(tmp_path, cut))
    for trial in found["trials"]:
        run = run_of(tmp_path, trial)
        summary = json.loads((run / "summary.json").read_text())
        assert summary["best/val/nll"] == pytest.approx(trial["value"])
        assert not any(key.startswith("test") for key in summary)
        assert "test/" not in (run / "metrics.jsonl").read_text()
    assert (tmp_path / "outputs" / "tiny" / "s-sweep" / "sweep.png").read_bytes()[1:4] == b"PNG"


def test_pruning_saves_steps_and_a_failed_trial_is_counted(tmp_path, settings):
    done = lmkit(
        *("sweep", *settings, "run_id=s", "trainer.max_epochs=8", "sampler=grid"),
        *("pruner=median", "num_startup_trials=1", "num_warmup_validations=2"),
        *("optimizer.lr=1e-2,1e-9,1e9", "format=json"),
        cwd=tmp_path,
    )
    found = json.loads(done.stdout)
    assert found["counts"] == {"finished": 1, "pruned": 1, "failed": 1}
    good, pruned, failed = found["trials"]
    assert good["outcome"] == "finished"
    assert failed["why"].startswith("NonFiniteError: ")
    assert pruned["outcome"] == "pruned"
    assert 2 <= len(pruned["validations"]) < 8
    last = [rows(run_of(tmp_path, trial))[-1]["step"] for trial in (good, pruned)]
    assert last[1] < last[0] / 2
    status = json.loads((run_of(tmp_path, pruned) / "status.json").read_text())
    assert status["status"] == "stopped"
    assert status["reason"].startswith("pruned after")


def test_a_sweep_of_which_nothing_finished_says_so(tmp_path, settings):
    lr = "optimizer.lr=1e9,1e10"
    done = lmkit(
        "sweep", *settings, "run_id=s", lr, "sampler=grid", "format=json", cwd=tmp_path, code=1
    )
    found = json.loads(done.stdout)
    assert found["counts"] == {"failed": 2}
    assert found["best"] is None
    place = tmp_path / "outputs" / "tiny" / "s-sweep"
    message = f"error: no trial finished; what they printed is in {place}\n"
    assert done.stderr.endswith(message)
    again = lmkit("sweep", *settings, "run_id=s", lr, "sampler=grid", cwd=tmp_path, code=1)
    assert again.stderr.endswith(message)
    assert outcomes(tmp_path, "s") == ["failed", "failed"]


def test_ctrl_c_stops_all_and_the_same_command_goes_on(tmp_path, settings):
    command = ["sweep", *settings, "run_id=s", "trainer.max_epochs=5", "seed=1,2", "sampler=grid"]
    process = start(*command, "format=json", cwd=tmp_path)
    first = tmp_path / "outputs" / "tiny" / "s-000"
    wait_for(lambda: (first / "metrics.jsonl").exists() and len(rows(first)) > 5)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=LIMIT)
    assert process.returncode == 130
    assert json.loads(out)["counts"] == {"running": 1}
    assert "to go on: lmkit sweep" in err
    assert json.loads((first / "status.json").read_text())["status"] == "stopped"
    assert outcomes(tmp_path, "s") == ["running"]
    lmkit(*command, cwd=tmp_path)
    assert outcomes(tmp_path, "s") == ["finished", "finished"]


def test_mistakes_are_found_before_anything_starts(tmp_path, settings):
    done = lmkit(
        *("sweep", *settings, "optimizer.lr=1e-2,fast", "model.hidden_size=interval(8,16)"),
        *("tokenizer=characters,bytes", "num_trials=0", "parallel=0", "num_startup_trials=-1"),
        cwd=tmp_path,
        code=2,
    )
    assert done.stderr == (
        "error: 6 mistakes:\n"
        "  num_trials=0: must be at least 1\n"
        "  parallel=0: must be at least 1\n"
        "  num_startup_trials=-1: must be at least 0\n"
        "  tokenizer=characters,bytes: nats per token of different tokens cannot be compared; "
        "set metric=val/bits_per_byte\n"
        "  optimizer.lr=fast: expected float, found text\n"
        "  model.hidden_size=11.056: expected int, found float\n"
    )
    assert not (tmp_path / "outputs").exists()


def test_another_search_is_another_sweep(tmp_path, settings):
    command = ["sweep", *settings, "run_id=s", "trainer.max_steps=2", "sampler=grid"]
    lmkit(*command, "seed=1,2", "num_trials=1", cwd=tmp_path)
    done = lmkit(*command, "seed=1,2,3", cwd=tmp_path, code=2)
    assert done.stderr.startswith("error: run_id=s is another sweep (")
    assert "\n  search: ['seed=1,2'] there, ['seed=1,2,3'] now\n" in done.stderr
    lmkit(*command, "seed=1,2", cwd=tmp_path)
    assert outcomes(tmp_path, "s") == ["finished"] * 2


@pytest.mark.slow
def test_trials_of_two_processes_are_what_they_are_alone(tmp_path, settings):
    several = [*settings, "trainer=ddp_cpu", "trainer.devices=2", "threads=1"]
    lmkit("sweep", *several, "run_id=s", "seed=1,2", "sampler=grid", cwd=tmp_path)
    for number, seed in enumerate((1, 2)):
        lmkit("train", *several, f"seed={seed}", f"run_id=alone-{seed}", cwd=tmp_path)
        tiny = tmp_path / "outputs" / "tiny"
        alone = [row for row in rows(tiny / f"alone-{seed}") if "test/nll" not in row]
        assert rows(tiny / f"s-{number:03d}") == alone


def test_trials_side_by_side_have_gpus_of_their_own(monkeypatch):
    monkeypatch.setitem(os.environ, "CUDA_VISIBLE_DEVICES", "4,5,6,7")
    config = {"trainer": {"accelerator": "cuda", "devices": 2, "num_nodes": 1}}
    assert gpu_slots(config, 2) == [
        {"CUDA_VISIBLE_DEVICES": "4,5"},
        {"CUDA_VISIBLE_DEVICES": "6,7"},
    ]
    with pytest.raises(Exception, match=r"parallel=3 trials of trainer.devices=2 need 6 GPUs, he"):
        gpu_slots(config, 3)


def test_a_metric_that_is_never_logged_is_told_before_a_trial_starts(tmp_path, settings):
    given = [*settings, "tokenizer=word", "seed=1,2", "metric=val/bits_per_byte", "run_id=s"]
    done = lmkit("sweep", *given, cwd=tmp_path, code=2)
    assert done.stderr.splitlines()[-1] == (
        "error: metric=val/bits_per_byte: never logged, as the tokenizer (word) does not keep "
        "every text as it is; set metric=val/nll, or take another tokenizer"
    )
    assert not (tmp_path / "outputs" / "tiny").exists()


def test_one_value_in_two_spellings_is_one_trial(settings):
    varied = ["model.dropout=0,0.0,0.5", "model.hidden_size=choice(4,4.0)", "seed=1,2"]
    search = split([*settings, *varied], ())
    config, _ = check(compose(search.first()), trains=False)
    search = search.distinct(read_values(search, config)[0])
    assert [d.values for d in search.dimensions] == [("0", "0.5"), ("4",), ("1", "2")]


def test_what_a_config_has_for_each_value_survives(tmp_path, settings):
    """Types as in the trial's config, through SQLite, sampler and sweep.json."""
    varied = [
        *("model=lstm,gru", "model.hidden_size=8,12", "optimizer.lr=1e-3,0.1"),
        *("model.tie_weights=true,false", "trainer.gradient_clip_val=null,1"),
        "model.dropout=interval(0,0.5)",
    ]
    given = [a for a in settings if not a.startswith(("model.hidden", "model.dropout"))]
    shown = {
        "model": ["lstm", "gru"],
        "model.hidden_size": [8, 12],
        "optimizer.lr": [0.001, 0.1],
        "model.tie_weights": [True, False],
        "trainer.gradient_clip_val": [None, 1],
    }
    search = split([*given, *varied], ())
    config, _ = check(compose(search.first()), trains=False)
    found, mistakes = read_values(search, config)
    assert not mistakes
    for key, values in shown.items():
        assert [*found[key].values()] == values
        assert [type(v) for v in found[key].values()] == [type(v) for v in values]
    study = Study(
        tmp_path / "study.db",
        search.dimensions,
        sampler="tpe",
        pruner="none",
        warmup=(1, 1),
        seed=1,
    )
    for _ in range(8):
        trial = study.ask()
        values = [trial.params[dimension.key] for dimension in search.dimensions]
        config, _ = check(compose(search.arguments(values)), trains=False)
        study.tell(trial, "finished", 1.0)
        place = Run(tmp_path / "s-sweep")
        place.path.mkdir(exist_ok=True)
        place.write("sweep.json", results(study, place, "val/nll", found))
        written = place.read("sweep.json")["trials"][-1]["values"]
        assert config["model"]["_target_"] == f"lmkit.model.{written.pop('model').upper()}"
        for key, value in written.items():
            group, _, name = key.partition(".")
            assert (value, type(value)) == (config[group][name], type(config[group][name]))


def test_an_exhausted_search_ends_and_a_killed_trial_goes_on(tmp_path, settings):
    command = ["sweep", *settings, "run_id=s", "seed=1,2", "num_trials=5", "restarts=0"]
    process = start(*command, cwd=tmp_path)
    first = tmp_path / "outputs" / "tiny" / "s-000"
    wait_for(lambda: (first / "metrics.jsonl").exists() and len(rows(first)) > 5)
    os.kill(json.loads((first / "status.json").read_text())["pid"], signal.SIGKILL)
    _, err = process.communicate(timeout=LIMIT)
    assert process.returncode == 1
    assert "there are 2 combinations of these values: the sweep ends when it has tried" in err
    assert "error: interrupted: 1 of 2 trials; to take them up again: lmkit sweep" in err
    assert outcomes(tmp_path, "s") == ["interrupted", "finished"]
    assert trials(tmp_path, "s")[0]["why"] == "killed by SIGKILL"
    lmkit("resume", "s-000", cwd=tmp_path)
    value = json.loads((first / "summary.json").read_text())["best/val/nll"]
    lmkit(*command, cwd=tmp_path)
    assert outcomes(tmp_path, "s") == ["finished", "finished"]
    assert trials(tmp_path, "s")[0]["value"] == value


@pytest.fixture
def swept(tmp_path):
    """A function that opens a sweep of two trials, which have ended without any process."""
    search = split(["seed=1,2"], ())
    place = Run(tmp_path / "tiny" / "s-sweep")

    def opened() -> Sweep:
        with place.holding():
            check_same(place, {"search": ["seed=1,2"]})
            given = {"sampler": "grid", "pruner": "none", "warmup": (1, 1), "seed": 1}
            file = place.path / "study.db"
            study = Study(file, search.dimensions, points=search.grid(), **given)
            return Sweep(place, {}, search, "val/nll", study, {})

    sweep = opened()
    for value in (2.0, 1.0):
        sweep.study.tell(sweep.study.ask(), "finished", value)
    sweep._write()
    return opened


@pytest.mark.parametrize("harm", [lambda file: file.unlink(), lambda file: file.write_bytes(b"")])
def test_a_study_that_is_lost_is_not_a_new_one(swept, tmp_path, harm):
    place = tmp_path / "tiny" / "s-sweep"
    harm(place / "study.db")
    with pytest.raises(UserError) as caught:
        swept()._reopen_finished()
    assert str(caught.value).startswith(
        f"{place}/study.db is damaged: it has 0 trials, {place}/sweep.json has 2; put back a copy"
    )


@pytest.mark.parametrize("harm", [lambda file: file.unlink(), lambda file: file.write_text("{}")])
def test_a_sweep_that_has_lost_what_it_is_is_not_a_new_one(swept, tmp_path, harm):
    place = tmp_path / "tiny" / "s-sweep"
    harm(place / "sweep.yaml")
    with pytest.raises(UserError, match=f"^{place} has lost its sweep.yaml, which says what its"):
        swept()


@pytest.mark.parametrize("text", ["", "[]", "{", '{"trials": 3}', '{"trials": "xxx"}'])
def test_results_that_are_damaged_are_made_anew_from_the_study(swept, tmp_path, caplog, text):
    file = tmp_path / "tiny" / "s-sweep" / "sweep.json"
    before = file.read_text()
    file.write_text(text)
    sweep = swept()
    sweep._reopen_finished()
    sweep._write()
    assert file.read_text() == before
    told = [f"{file} is damaged: " in message for message in caplog.messages]
    assert told == ([] if "trials" in text else [True])


def test_results_of_very_many_trials_are_read(swept, tmp_path):
    file = tmp_path / "tiny" / "s-sweep" / "sweep.json"
    file.write_text(json.dumps({"trials": [[1.0] * 900_000, [], []]}))
    with pytest.raises(UserError, match=r"sweep\.json has 3; put back a copy"):
        swept()._reopen_finished()


@pytest.mark.parametrize("name", ["study.db", "sweep.json", "sweep.yaml", "sweep.png", "trial.log"])
@pytest.mark.parametrize("kind", ["a FIFO", "a directory", "endless", "a loop"])
def test_a_sweep_is_not_gone_on_with_where_it_cannot_write(swept, tmp_path, name, kind):
    path = tmp_path / "tiny" / "s-sweep" / name
    path.touch()
    DAMAGES[kind](path)
    with pytest.raises(UserError, match=f"^{path} .*; remove it$"):
        swept()


def test_a_key_that_was_searched_in_its_logarithm_is_drawn_in_it():
    trials = [
        {"values": {"lr": n, "p": n}, "value": 1.0, "validations": [], "outcome": "finished"}
        for n in (0.1, 0.2, 0.25)
    ]
    axes = draw({"trials": trials, "metric": "val/nll"}, log=["lr"]).axes
    assert [each.get_xscale() for each in axes] == ["log", "linear"]
