"""Disks that are really full, limits on files, users without a home, streams that are closed."""

import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from faulty import assert_same_run, end
from journey import LIMIT, lmkit, start, wait_for_rows

from lmkit.cli import main

pytestmark = pytest.mark.faults
FREE = "No space left on device (0 bytes of 8 MiB are free"


@pytest.fixture
def small(tmp_path) -> Iterator[Path]:
    """The directory of a file system of 8 MiB."""
    place = tmp_path / "small"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(place)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a file system can be mounted by root alone, and not in every container")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def fill(place: Path) -> Path:
    """Leave no byte of a file system free."""
    filler = place / "filler"
    with filler.open("ab", buffering=0) as file:
        for size in (1 << 16, 1 << 12, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                pass
    return filler


def test_a_disk_that_is_full_in_training_ends_it_in_a_sentence(finished, settings, small):
    process = start("train", *settings, "run_id=cut", cwd=small)
    run = small / "outputs" / "tiny" / "cut"
    wait_for_rows(process, run, 5)
    filler = fill(small)
    err = end(process, 2)
    assert "Traceback" not in err
    message = err.splitlines()[-1]
    assert message.startswith(f"error: cannot write {run}/")
    assert FREE in message
    assert message.endswith("; make room there, then go on with: lmkit resume cut")
    status = json.loads((run / "status.json").read_text())
    assert (status["status"], status["exit_code"]) == ("failed", 2)
    assert status["reason"].startswith("MachineError: cannot write ")
    filler.unlink()
    lmkit("resume", "cut", cwd=small)
    assert_same_run(run, finished[0])


COMMANDS = (
    ("score", "whole", "text=the cat"),
    ("resume", "whole", "trainer.max_epochs=4"),
    ("train", "run_id=other"),
    ("train", "-m", "run_id=several", "seed=1,2"),
    ("sweep", "run_id=swept", "seed=1,2", "sampler=grid"),
    ("prepare", "store=store"),
    ("prepare", "data.unit=line"),
    ("train", "run_id=two", "trainer.devices=2", "trainer.strategy=ddp"),
    ("analyze", "probe", "run_id=probe"),
)
OF_NO_TEXT = ("score", "resume", "analyze")


def last_lines(settings, small, capfd) -> Iterator[str]:
    """What each command that writes ends with, where it cannot."""
    table = small.parent / "items.csv"
    table.write_text("sentence\nthe cat\n")
    words = ("score", "whole", f"table={table}", f"out={small / 'words.csv'}")
    for command, *arguments in (*COMMANDS, words):
        keys = [] if command in OF_NO_TEXT else settings
        assert main([command, *keys, *arguments]) == 2, command
        out, err = capfd.readouterr()
        assert "Traceback" not in out + err
        last = err.splitlines()[-1]
        assert last.startswith("error: "), err
        assert str(small) in last
        yield last


def test_a_disk_that_is_full_ends_two_processes_in_a_sentence(settings, small):
    two = ("trainer.devices=2", "trainer.strategy=ddp", "trainer.max_epochs=50")
    process = start("train", *settings, *two, "run_id=cut", cwd=small)
    run = small / "outputs" / "tiny" / "cut"
    wait_for_rows(process, run, 5)
    fill(small)
    err = end(process, 2)
    assert "Traceback" not in err, err
    assert FREE in err.splitlines()[-1]
    assert err.endswith("; make room there, then go on with: lmkit resume cut\n")
    assert json.loads((run / "status.json").read_text())["exit_code"] == 2


def test_a_read_only_file_system_is_named_and_what_only_reads_goes_on(
    finished, settings, small, monkeypatch, capfd
):
    shutil.copytree(finished[0].parents[1], small / "outputs", symlinks=True)
    subprocess.run(["mount", "-o", "remount,ro", str(small)], check=True)
    monkeypatch.chdir(small)
    for last in last_lines(settings, small, capfd):
        assert "Read-only file system" in last
    for command in (["evaluate", "whole"], ["generate", "whole", "num_tokens=2"], ["list"]):
        assert main(command) == 0
    assert capfd.readouterr().err == ""


def test_every_command_that_writes_says_where_and_loses_nothing(
    finished, settings, small, monkeypatch, capfd
):
    shutil.copytree(finished[0].parents[1], small / "outputs", symlinks=True)
    monkeypatch.chdir(small)
    before = {file: file.read_bytes() for file in Path("outputs").rglob("*") if file.is_file()}
    fill(small)
    for last in last_lines(settings, small, capfd):
        assert FREE in last
    kept = {file for file in before if file.name != ".lock"}
    assert {file: file.read_bytes() for file in kept} == {file: before[file] for file in kept}


def test_a_database_without_room_is_a_sentence(small):
    from lmkit.errors import MachineError
    from lmkit.sweep.search import Dimension
    from lmkit.sweep.study import Study

    given = {"sampler": "random", "pruner": "none", "warmup": (1, 1), "seed": 1}
    study = Study(small / "study.db", (Dimension("a", "a=..", low=0.0, high=1.0),), **given)
    trial = study.ask()
    filler = fill(small)
    with pytest.raises(MachineError, match=f"cannot write {small}/study.db: No space left"):
        _go_on(study, trial)
    ended = [t.value for t in study.trials() if t.value]
    filler.unlink()
    again = Study(small / "study.db", (Dimension("a", "a=..", low=0.0, high=1.0),), **given)
    assert [t.value for t in again.trials() if t.value] == ended


def _go_on(study, trial) -> None:
    for _ in range(100):
        study.tell(trial, "finished", 1.0)
        trial = study.ask()


@pytest.mark.slow
def test_a_limit_on_the_size_of_files(settings, tmp_path):
    larger = ("model.hidden_size=64", "model.embedding_size=64", "trainer.max_epochs=1")
    done = subprocess.run(
        [sys.executable, "-m", "lmkit", "train", *settings, *larger, "run_id=cut"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)),
    )
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert "File too large (" in done.stderr.splitlines()[-1]
    assert "(ulimit -f), then go on with: lmkit resume cut" in done.stderr.splitlines()[-1]
    lmkit("resume", "cut", cwd=tmp_path)


def test_a_user_without_a_home_or_a_name(tmp_path):
    """As `docker run --user 12345`; it may read everything here, and write where it is let."""
    setpriv = shutil.which("setpriv")
    if os.geteuid() or setpriv is None:
        pytest.skip("another user can be taken by root alone, with setpriv")
    may = ["--inh-caps=-all,+dac_read_search", "--ambient-caps=-all,+dac_read_search"]
    user = [setpriv, "--reuid=12345", "--regid=12345", "--clear-groups", *may]
    environment = {key: value for key, value in os.environ.items() if key != "HOME"}
    unwritable = {"XDG_CACHE_HOME": "/proc", "TMPDIR": "/proc"}
    for more in ({}, {"HOME": "/root"}, unwritable):
        done = subprocess.run(
            [*user, sys.executable, "-m", "lmkit", "doctor", "probe=false", "format=json"],
            cwd="/tmp",
            env=environment | more,
            capture_output=True,
            text=True,
            timeout=LIMIT,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert "WARNING" not in done.stderr
        assert json.loads(done.stdout)["auto"]["kernels"].startswith(("compiled", "torch: "))


CLOSED = "import sys; from lmkit.cli import main; sys.exit(main(['list', 'model=lstm']))"


@pytest.mark.parametrize("redirection", [">&-", "2>&-", "<&-", "<&- >&- 2>&-"])
def test_streams_that_are_closed(redirection, tmp_path):
    command = f'"{sys.executable}" -c "{CLOSED}" {redirection}'
    done = subprocess.run(command, shell=True, capture_output=True, check=False, timeout=LIMIT)
    assert (done.returncode, done.stderr) == (0, b"")
    assert bool(done.stdout) == (">&-" not in redirection.replace("2>&-", ""))


SAYS = """
import sys, lmkit.cli, lmkit.commands.list
from rich.console import Console
from lmkit.errors import ResultError

def says(selected, commands, config_dir):
    for stream in (sys.stderr, sys.stdout):
        for _ in range(2):
            Console(file=stream).print("said")
            print("said", file=stream, flush=True)
    raise ResultError("bad", {"a": 1}, 7)

lmkit.commands.list.list = says
sys.exit(lmkit.cli.main(["list", *sys.argv[1:]]))
"""


@pytest.mark.parametrize("keys", [[], ["format=json"]])
@pytest.mark.parametrize("unread", ["stdout", "stderr"])
def test_streams_that_nobody_reads_change_nothing(unread, keys):
    reader, writer = os.pipe()
    os.close(reader)
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, unread: writer}
    command = [sys.executable, "-c", SAYS, *keys]
    done = subprocess.run(command, **streams, check=False, timeout=LIMIT)
    os.close(writer)
    assert done.returncode == 7
    if unread == "stdout":
        assert done.stderr == b"said\n" * (8 if keys else 4) + b"error: bad\n"
    else:
        assert done.stdout == (b'{\n  "a": 1\n}\n' if keys else b"said\n" * 4)


@pytest.mark.parametrize("stream", ["2> /dev/full", "2> >(true)"])
def test_a_stderr_that_takes_nothing_ends_nothing(stream):
    done = subprocess.run(
        ["bash", "-c", f'"$0" -c "$1" {stream}', sys.executable, SAYS],
        capture_output=True,
        check=False,
        timeout=LIMIT,
    )
    assert (done.returncode, done.stdout) == (7, b"said\n" * 4)


def test_a_stdout_without_room_is_an_error():
    command = f'"{sys.executable}" -c "{CLOSED}" > /dev/full'
    done = subprocess.run(command, shell=True, capture_output=True, check=False, timeout=LIMIT)
    assert done.returncode == 2
    assert done.stderr == b"error: cannot write a file: No space left on device; make room there\n"


def test_a_stdout_that_is_not_utf_8():
    patched = "lmkit.commands.list.list = lambda selected, commands, config_dir: "
    text = f"{patched}print('na\\xefve \\u4e2d')"
    code = f"import lmkit.cli, lmkit.commands.list; {text}; lmkit.cli.main(['list'])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
        capture_output=True,
        check=False,
        timeout=LIMIT,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == b"na\\xefve \\u4e2d\n"
