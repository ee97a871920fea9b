"""docs/optimisers.md: its commands pass the check, its table has every schedule."""

import re
import shlex
from itertools import pairwise
from pathlib import Path

import pytest

from lmkit.config.check import check
from lmkit.config.compose import compose
from lmkit.config.groups import CONF, group_options
from lmkit.run.history import refused

TEXT = (Path(__file__).parents[2] / "docs" / "optimisers.md").read_text()
BLOCKS = re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL)
COMMANDS = [shlex.split(line) for block in BLOCKS for line in block.splitlines()]
TRAININGS = [words for words in COMMANDS if words[1] == "train"]


@pytest.mark.parametrize("words", TRAININGS, ids=lambda words: " ".join(words[2:]))
def test_its_trainings_pass_the_check(words, tmp_path, monkeypatch):
    (tmp_path / "wikitext-2").mkdir()
    for split in ("train", "valid", "test"):
        (tmp_path / "wikitext-2" / f"{split}.txt").write_text(" = A = \n\n some words \n")
    monkeypatch.chdir(tmp_path)
    check(compose(words[2:]))


def test_its_resumes_change_what_may_change():
    (first,) = [words for words in TRAININGS if "run_id=long" in words]
    keys, configs = first[2:], [check(compose(first[2:]))[0]]
    for words in COMMANDS:
        if words[1] == "resume":
            assert words[2] == "long"
            keys += words[3:]
            configs.append(check(compose(keys))[0])
    assert len(configs) == 3
    for then, now in pairwise(configs):
        assert not list(refused(then, now, diverged=False))


def test_its_table_has_every_schedule():
    rows = [line.split("|")[1] for line in TEXT.splitlines() if line.startswith("| `")]
    named = [name for row in rows for name in re.findall(r"`(\w+)`", row)]
    assert sorted(named) == sorted(group_options([CONF])["scheduler"])
