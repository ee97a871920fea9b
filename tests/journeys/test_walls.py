"""Whatever the files of one run hold, it spoils that run alone: for commands, tab key and page."""

import json
import logging
import os
import shutil

import pytest
from damages import DAMAGES
from trained_run import make_run

from lmkit.cli import commands, main
from lmkit.commands.completion import complete
from lmkit.errors import UserError
from lmkit.inference.identity import recorded
from lmkit.pages import feed
from lmkit.pages.dashboard import _known
from lmkit.pages.feed import Outputs
from lmkit.run import Run, history, jsonl, no_checkpoint
from lmkit.run.jsonl import read_rows
from lmkit.system.regular_file import DamagedError
from lmkit.training.launch import _check, _stays

FILES = (
    *("status.json", "config.yaml", "summary.json", "metrics.jsonl", "samples.jsonl"),
    *("data.json", "tokenizer.json", ".lock", "checkpoints/step-000000007.json"),
    *("checkpoints/step-000000007.ckpt", "checkpoints/best.ckpt"),
)
ROWS = [{"step": step, "epoch": 0, "train/nll": 5.0 - step} for step in range(3)]


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """Two runs, of which `sound` is the older one."""
    place = tmp_path_factory.mktemp("walls")
    run = make_run(place, "lstm", "bytes")
    run.path.rename(run.path.with_name("sound"))
    sound = Run(run.path.with_name("sound"))
    sound.write("summary.json", {"test/perplexity": 9.5})
    for name in ("metrics", "samples"):
        (sound.path / f"{name}.jsonl").write_text("".join(f"{json.dumps(r)}\n" for r in ROWS))
    return place


@pytest.fixture
def hurt(outputs, request):
    """The newer run, a copy of `sound` with the damage of the test's parameters."""
    path = outputs / "tiny" / "hurt"
    shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(outputs / "tiny" / "sound", path, symlinks=True)
    run = Run(path)
    run.write("status.json", run.status() | {"started": "2030-01-01T00:00:00+00:00"})
    yield run
    shutil.rmtree(path)


def damage(run, file, kind):
    path = run.path / file
    if path.is_symlink():
        target = path.read_bytes()
        path.unlink()
        path.write_bytes(target)
    DAMAGES[kind](path)


@pytest.mark.parametrize("kind", DAMAGES)
@pytest.mark.parametrize("file", FILES)
def test_the_page_shows_the_others_and_names_the_damage(outputs, hurt, file, kind):
    damage(hurt, file, kind)
    feed = Outputs(outputs)
    first = feed.changes({})
    assert list(first) == ["tiny/hurt", "tiny/sound"]
    known = {"metrics": [0, 0], "samples": [0, 0]}
    second = feed.changes({key: known | {"stamp": first[key]["stamp"]} for key in first})
    assert [second["tiny/sound"][name]["rows"] for name in ("metrics", "samples")] == [ROWS, ROWS]
    assert first["tiny/sound"]["about"]["problems"] == []
    problems = first["tiny/hurt"]["about"]["problems"]
    shown = {"status.json", "config.yaml", "summary.json", "metrics.jsonl", "samples.jsonl"}
    if kind == "other values" or file not in shown:  # a mapping; a file that it does not read
        assert problems == []
    elif file.endswith("l") and kind in list(DAMAGES)[:6] and file != "config.yaml":
        assert problems == []  # of lines, which are counted as they are read
        rows = second["tiny/hurt"][file.partition(".")[0]]
        assert rows["num_damaged"] == (0 if kind in ("cut short", "nested") else 1)
    else:
        (problem,) = problems
        assert problem.startswith(f"{hurt.path / file} ")


@pytest.mark.parametrize(
    "kind", ["cut short", "a list", "nested", "other values", "a FIFO", "a loop"]
)
@pytest.mark.parametrize("file", ["status.json", "config.yaml", ".lock", "checkpoints/best.ckpt"])
def test_commands_on_other_runs_go_on(outputs, hurt, file, kind, capfd):
    damage(hurt, file, kind)
    for which in ("sound", "hurt"):
        code = main(["generate", which, "num_tokens=2", f"outputs={outputs}"])
        out, err = capfd.readouterr()
        assert "Traceback" not in err
        if which == "sound" or not file.endswith(("yaml", "ckpt")):
            assert (code, bool(out)) == (0, True)
        else:
            assert code == 2
            assert str(hurt.path) in err or "mistakes:" in err  # in its keys
    assert complete(f"lmkit generate outputs={outputs} so", commands()) == ["sound "]
    complete(f"lmkit resume hurt outputs={outputs} model.hid", commands())


@pytest.mark.parametrize("kind", ["cut short", "a list", "a FIFO", "a loop", "600 MB"])
@pytest.mark.parametrize("file", ["status.json", "config.yaml"])
def test_latest_passes_over_a_damaged_run_with_a_word(outputs, hurt, file, kind, caplog):
    damage(hurt, file, kind)
    with caplog.at_level(logging.INFO, "lmkit"):
        assert Run.find(outputs, "latest", no_checkpoint).id == "sound"
    (message,) = caplog.messages
    assert message.startswith(
        f"latest is tiny/sound: the newer tiny/hurt cannot be used: {hurt.path / file} "
    )


def test_a_run_without_its_config_is_named(outputs, hurt, caplog):
    (hurt.path / "config.yaml").unlink()
    with caplog.at_level(logging.INFO, "lmkit"):
        assert Run.find(outputs, "latest").id == "sound"
    said = "latest is tiny/sound: the newer tiny/hurt has lost its config.yaml"
    assert caplog.messages == [said]
    about = Outputs(outputs).changes({})["tiny/hurt"]["about"]
    assert about["problems"] == [f"{hurt.path} has lost its config.yaml"]


def test_a_sweep_is_no_run_that_has_lost_its_config(outputs):
    made = []
    for file in ("sweep.yaml", "study.db"):
        sweep = outputs / "tiny" / f"{file}-sweep"
        sweep.mkdir()
        (sweep / file).write_text("")
        (sweep / "status.json").write_text("{}")
        made.append(sweep)
    try:
        assert not [name for name in Outputs(outputs).changes({}) if "-sweep" in name]
        assert not [run.id for run in Run.all(outputs) if "-sweep" in run.id]
    finally:
        for sweep in made:
            shutil.rmtree(sweep)


def test_files_of_somebody_else(outputs, hurt):
    """As of a colleague whose files have the mode 0600, and whose directory 0700."""
    if os.geteuid():
        pytest.skip("only root can be another user for a while")
    others = [outputs, *outputs.rglob("*")]
    for path in (*outputs.parents, *others):
        path.chmod(path.stat().st_mode | 0o555 if path.exists() else 0)
    (hurt.path / "status.json").chmod(0o600)
    os.seteuid(65534)
    try:
        said = "cannot be read: Permission denied; put a sound copy in its place"
        about = Outputs(outputs).changes({})["tiny/hurt"]["about"]
        assert about["problems"] == [f"{hurt.path}/status.json {said}"]
        assert Run.find(outputs, "sound").id == "sound"
        os.seteuid(0)
        hurt.path.chmod(0o700)
        os.seteuid(65534)
        assert Run.find(outputs, "latest").id == "sound"
        about = Outputs(outputs).changes({})["tiny/hurt"]["about"]
        assert f"{hurt.path}/config.yaml {said}" in about["problems"]
    finally:
        os.seteuid(0)


@pytest.mark.parametrize("name", ["metrics.jsonl", "summary.json", "status.json"])
@pytest.mark.parametrize("kind", ["a FIFO", "a directory", "a socket", "a loop", "endless"])
def test_a_run_is_not_started_where_it_cannot_write(hurt, name, kind):
    damage(hurt, name, kind)
    for start in (hurt.check, hurt.start):
        with pytest.raises(UserError, match=f"^{hurt.path / name} .*; remove it$"):
            start(hurt.config())
    assert not hurt.held()


def test_a_damaged_status_is_written_anew_with_a_word(hurt, caplog):
    (hurt.path / "status.json").write_text("[]")
    hurt.start(hurt.config())
    hurt.release()
    assert hurt.read("status.json")["status"] == "running"
    assert (
        f"{hurt.path}/status.json is damaged: expected a mapping, found a list; "
        "put a sound copy in its place: it is written anew"
    ) in caplog.messages


@pytest.mark.parametrize("text", ["", "[]", '{"status": '])
def test_a_damaged_status_or_summary_stops_no_run(hurt, caplog, text):
    config = hurt.config()
    for name, said in (("status.json", []), ("summary.json", ["summary.json is damaged: "])):
        hurt.write("status.json", {"status": "finished"})
        assert _stays(hurt, config)
        (hurt.path / name).write_text(text)
        caplog.clear()
        assert not _stays(hurt, config)
        assert [each in message for each, message in zip(said, caplog.messages, strict=True)] == [
            True for _ in said
        ]


@pytest.mark.parametrize("harm", [lambda file: file.unlink(), lambda file: file.write_text("{}")])
def test_a_run_that_has_lost_its_config_does_not_go_on(hurt, harm):
    config = hurt.config()
    harm(hurt.path / "config.yaml")
    with pytest.raises(UserError) as caught:
        _check(hurt, config)
    lost = f"{hurt.path} has lost its config.yaml: put a sound copy back, or begin another run"
    assert str(caught.value) == lost


@pytest.mark.parametrize("command", ["verify", "evaluate", "generate", "resume"])
def test_an_empty_config_is_none(outputs, hurt, command, capfd):
    (hurt.path / "config.yaml").write_text("{}")
    assert main([command, "hurt", f"outputs={outputs}"]) == 2
    said = f"error: {hurt.path}/config.yaml is damaged: it holds no config of a run; put a sound "
    assert capfd.readouterr().err.startswith(said)


@pytest.mark.parametrize(
    "data",
    [{"a": 1}, {"tokenizer": 1, "splits": {}}, {"tokenizer": "x", "splits": []},
     {"tokenizer": "x", "splits": {"train": 3}}, {"tokenizer": "x", "splits": {}, "resumed": [3]}],
)  # fmt: skip
def test_hashes_of_another_shape_are_damage(hurt, data):
    (hurt.path / "data.json").write_text(json.dumps(data))
    with pytest.raises(DamagedError, match=f"^{hurt.path}/data.json is damaged: "):
        recorded(hurt)


def test_a_record_of_somebody_elses_shape_has_no_changes():
    record = ["a=1", 3, {"changed": 3}, {"changed": {"seed": 4, "lr": [1, 2]}}, {"changed": []}]
    assert history.earlier(record, "lr") == [1]
    assert history.earlier(record, "seed") == []
    assert history.last_changed(record[:-1]) == {"lr": [1, 2]}


def test_a_damaged_sweep_spoils_its_trials_alone(outputs, hurt):
    sweep = outputs / "tiny" / "s-sweep"
    sweep.mkdir()
    for name in ("s-000", "s-001"):
        (outputs / "tiny" / name).symlink_to(hurt.path)
    trial = {"run": "tiny/s-000", "outcome": "finished", "value": 1.5, "values": {"a": 1}}
    trials = [trial | {"validations": [1.5, None]}]

    def seen(value):
        (sweep / "sweep.json").write_text(json.dumps(value))
        found = Outputs(outputs).changes({})
        assert found["tiny/sound"]["about"]["problems"] == []
        return found["tiny/s-000"]["about"]

    try:
        assert seen({"metric": "m", "trials": trials})["sweep"]["value"] == 1.5
        for wrong in (
            *([], {"metric": "m"}, {"metric": "m", "trials": 3}),
            *({"metric": "m", "trials": [3]}, {"metric": "m", "trials": [trial]}),
            {"metric": "m", "trials": [trials[0] | {"value": "x"}]},
            {"metric": "m", "trials": [trials[0] | {"values": [1]}]},
        ):
            (problem,) = seen(wrong)["problems"]
            assert problem.startswith(f"{sweep}/sweep.json is damaged: ")
    finally:
        shutil.rmtree(sweep)
        for name in ("s-000", "s-001"):
            (outputs / "tiny" / name).unlink()


@pytest.mark.parametrize("num_bytes", [1, 100, 900])
def test_a_line_without_end_is_one_damaged_line(tmp_path, num_bytes, monkeypatch):
    monkeypatch.setattr(jsonl, "MAX_ROW", 1000)
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"a": 1}\n{"b": "' + b"x" * 12_345 + b'"}\n{"a": 2}\n')
    place, rows, num_damaged, more = [0, 0], [], 0, True
    while more:
        piece = read_rows(path, place, num_bytes)
        assert piece["place"][0] - place[0] <= num_bytes + 1000  # what is in memory
        place, more = piece["place"], piece["more"]
        rows += piece["rows"]
        num_damaged += piece["num_damaged"]
    assert (rows, num_damaged) == ([{"a": 1}, {"a": 2}], 1)


def test_no_more_of_a_file_is_read_than_its_bounds(tmp_path, monkeypatch):
    monkeypatch.setattr(jsonl, "MAX_READ", 50)
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n' * 100)
    piece = read_rows(path, [0, 0], 60)
    assert (piece["beyond"], len(piece["rows"]), piece["more"]) == (False, 5 + 1, True)
    piece = read_rows(path, piece["place"], 60)
    assert (piece["beyond"], piece["rows"], piece["more"]) == (True, [], False)


def test_an_answer_has_its_bounds_and_the_next_goes_on(outputs, hurt, monkeypatch):
    whole = Outputs(outputs).changes({})
    monkeypatch.setattr(feed, "NUM_ANSWERED", 10)
    watched, known, rows = Outputs(outputs), {}, {}
    for _ in range(6):
        found = watched.changes(known)
        for key, new in found.items():
            if "about" in new:
                assert new["about"] == whole[key]["about"]
                known[key] = {"stamp": new["stamp"], "metrics": [0, 0]}
            if "metrics" in new:
                rows.setdefault(key, []).extend(new["metrics"]["rows"])
                known[key]["metrics"] = new["metrics"]["place"]
        assert sum("about" in new for new in found.values()) <= 1
    assert rows == {"tiny/hurt": ROWS, "tiny/sound": ROWS}
    assert not any("more" in new for new in found.values())


@pytest.mark.parametrize(
    "body",
    [[], 3, None, {"a": []}, {"a": {"metrics": 3}}, {"a": {"metrics": [-1, 0]}},
     {"a": {"metrics": [0.5, 0]}}, {"a": {"metrics": [1 << 70, 0]}}, {"a": {"samples": ["", 0]}}],
)  # fmt: skip
def test_a_question_that_is_none(body):
    with pytest.raises((ValueError, TypeError, AttributeError)):
        _known(body)
