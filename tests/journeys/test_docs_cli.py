"""docs/cli.md: its commands are understood, its table is what the code does."""

import functools
import re
import shlex
import signal
from pathlib import Path

import pytest

from lmkit import cli
from lmkit.command import Command
from lmkit.system.signals import SIGNALS

TEXT = (Path(__file__).parents[2] / "docs" / "cli.md").read_text()
BLOCKS = re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL)
COMMANDS = [line for block in BLOCKS for line in block.splitlines() if line.startswith("lmkit ")]


@pytest.mark.parametrize("command", COMMANDS)
def test_its_commands_are_understood(command, tmp_path, monkeypatch):
    (tmp_path / "conf" / "model").mkdir(parents=True)
    (tmp_path / "conf" / "model" / "mine.yaml").write_text("_target_: lmkit.model.GRU\n")
    small = re.search(r"```yaml\n(.*?)```", TEXT, re.DOTALL)[1]
    (tmp_path / "conf" / "small.yaml").write_text(small)
    monkeypatch.chdir(tmp_path)
    words = shlex.split(command, comments=True)[1:]
    called = []
    load = Command.load

    def stub(command):
        function = load(command)
        return functools.wraps(function)(lambda **keys: called.append(keys))

    if "--cfg" not in words and words[0] != "list":
        monkeypatch.setattr(Command, "load", stub)
        monkeypatch.setattr("lmkit.sweep.multirun.multirun", called.append)
    assert cli.main(words) == 0
    if "--config-name" in words:
        assert called[0]["composition"].config["model"]["hidden_size"] == 100


def test_its_completion_is_one_line_for_each_shell():
    lines = [line for block in BLOCKS for line in block.splitlines() if line.startswith("eval")]
    assert [shlex.split(line, comments=True)[1] for line in lines] == [
        "$(lmkit completion bash)",
        "$(lmkit completion zsh)",
    ]


def test_its_exit_codes_are_those_of_the_signals():
    codes = {signal.Signals(s).name: str(128 + s) for s in SIGNALS}
    assert "| 130, 143, 138 |" in TEXT
    assert codes == {"SIGINT": "130", "SIGTERM": "143", "SIGUSR1": "138"}
