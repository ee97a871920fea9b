"""What the tab key completes, as a list of words and in real shells."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lmkit import cli
from lmkit.command import commands
from lmkit.commands.completion import complete

HEAVY = {"torch", "lightning", "hydra", "wandb", "rich"}


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """A directory with a run, a text with a space in its name and a config of the user's."""
    run = tmp_path / "outputs" / "quick" / "20251125-a1"
    (run / "checkpoints").mkdir(parents=True)
    (run / "checkpoints" / "best.ckpt").touch()
    (run / "config.yaml").write_text("model: {_target_: lmkit.model.Elman}\n")
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "my text.txt").touch()
    (tmp_path / "conf" / "model").mkdir(parents=True)
    (tmp_path / "conf" / "mine.yaml").write_text("defaults: [train]\n")
    (tmp_path / "conf" / "model" / "own.yaml").write_text("_target_: lmkit.model.Window\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("lmkit do", ["doctor "]),
        ("lmkit nothing ", []),
        ("lmkit train mod", ["model=", "model."]),
        ("lmkit train model=l", ["model=layer_norm_lstm ", "model=lstm ", "model=lstmp "]),
        ("lmkit train model.hid", ["model.hidden_size=", "model.hidden_sizes="]),
        ("lmkit train model=window model.con", ["model.context="]),
        ("lmkit train model.con", []),
        ("lmkit train data=wikitext tokenizer.lo", ["tokenizer.lower="]),
        ("lmkit train tokenizer=bpe data=wikitext tokenizer.lo", []),
        ("lmkit train model.recurrent_init=x", ["model.recurrent_init=xavier "]),
        ("lmkit train model.tie_weights=", ["model.tie_weights=true ", "model.tie_weights=false "]),
        ("lmkit train callbacks.s", ["callbacks.samples."]),
        ("lmkit train callbacks.samples.p", ["callbacks.samples.prompt="]),
        ("lmkit train trainer.precision=b", ["trainer.precision=bf16-mixed "]),
        ("lmkit train data.path=te", ["data.path=texts/"]),
        ("lmkit train data.path=texts/m", ["data.path=texts/my\\ text.txt "]),
        ("lmkit evaluate latest path=te", ["path=texts/"]),
        ("lmkit train 'data.path=a b' model=g", ["model=gru "]),
        ("lmkit train --config-n", ["--config-name "]),
        ("lmkit train --config-dir conf --config-name m", ["mine "]),
        ("lmkit train --config-dir conf model=o", ["model=own "]),
        ("lmkit generate --config", ["--config-dir "]),
        ("lmkit generate ", ["latest ", "20251125-a1 "]),
        ("lmkit generate 2025", ["20251125-a1 "]),
        ("lmkit generate latest num_t", ["num_tokens="]),
        ("lmkit generate latest checkpoint=", ["checkpoint=best "]),
        ("lmkit generate latest model.non", ["model.nonlinearity="]),
        ("lmkit evaluate latest split=v", ["split=valid "]),
        ("lmkit evaluate latest protocol=s", ["protocol=sentence ", "protocol=stream "]),
        ("lmkit score latest table=te", ["table=texts/"]),
        ("lmkit score latest first", ["first_word="]),
        ("lmkit score latest joined_by=n", ["joined_by=newline "]),
        ("lmkit sweep pruner=h", ["pruner=halving "]),
        ("lmkit list optim", ["optimizer="]),
        ("lmkit list optimizer=s", ["optimizer=sgd "]),
        ("lmkit analyze ", ["probe "]),
        ("lmkit reproduce zaremba_s", ["zaremba_small "]),
        ("lmkit reproduce zaremba_small res", ["results=", "restarts="]),
        ("lmkit completion z", ["zsh "]),
    ],
)
def test_words(line, words, place):
    assert complete(line, commands()) == words


def test_it_imports_nothing_heavy():
    code = (
        "import sys; from lmkit.cli import main\n"
        "assert main(['--complete', 'lmkit train trainer.']) == 0\n"
        f"assert not {HEAVY} & set(sys.modules), {HEAVY} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "trainer.max_epochs=\n" in done.stdout


def environment(place: Path) -> dict[str, str]:
    """With `lmkit` on the PATH, whatever is installed."""
    script = place / "bin" / "lmkit"
    script.parent.mkdir()
    script.write_text(f'#!/bin/sh\nexec {sys.executable} -m lmkit "$@"\n')
    script.chmod(0o755)
    return {**os.environ, "PATH": f"{script.parent}:{os.environ['PATH']}"}


@pytest.mark.skipif(not shutil.which("bash"), reason="there is no bash here")
def test_in_bash(place):
    """readline hands over the whole line, and replaces what comes after the last = of a word."""
    lines = ["lmkit tra", "lmkit train model=g", "lmkit train data.path=texts/m", "lmkit train mo"]
    script = 'eval "$(lmkit completion bash)"; complete -p lmkit\n'
    for line in lines:
        script += f"COMP_LINE='{line}'; COMP_POINT=${{#COMP_LINE}}; COMP_WORDS=(lmkit)\n"
        script += "_lmkit; printf '<%s>' \"${COMPREPLY[@]}\"; echo\n"
    done = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, env=environment(place)
    )
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        "complete -o nospace -F _lmkit lmkit",
        "<train >",
        "<gru >",
        "<texts/my\\ text.txt >",
        "<model=><model.>",
    ]


@pytest.mark.skipif(not shutil.which("zsh"), reason="there is no zsh here")
def test_in_zsh(place):
    script = """
        autoload -Uz compinit && compinit -u
        eval "$(lmkit completion zsh)"
        compadd() { shift 4; print -r -- "<${(j:><:)@}>" }
        words=(lmkit train model=g) CURRENT=3 PREFIX=model=g; _lmkit
        words=(lmkit train 'model=gru' data.path=te) CURRENT=4 PREFIX=data.path=te; _lmkit
    """
    done = subprocess.run(
        ["zsh", "-fc", script], capture_output=True, text=True, env=environment(place)
    )
    assert done.stderr == ""
    assert done.stdout.splitlines() == ["<model=gru >", "<data.path=texts/>"]


def test_a_shell_that_there_is_not(capsys):
    assert cli.main(["completion", "fsh"]) == 2
    assert "lmkit completion fsh: no such shell; did you mean zsh?" in capsys.readouterr().err
