"""What looks like a flag of another program is answered with the key that it means."""

import pytest

from lmkit import cli
from lmkit.config.grammar import parse_flags
from lmkit.errors import UserError


@pytest.mark.parametrize(
    ("argv", "flag", "key"),
    [
        (["--optimizer.lr=0.1"], "--optimizer.lr=0.1", "optimizer.lr=0.1"),
        (["seed=2", "--optimizer.lr", "0.1"], "--optimizer.lr", "optimizer.lr=0.1"),
        (["--num-trials", "20", "seed=2"], "--num-trials", "num_trials=20"),
        (["--further", "seed=2"], "--further", "further=true"),
        (["-lr", "0.1"], "-lr", "lr=0.1"),
        (["--text", "a b"], "--text", "'text=a b'"),
        (["--model=a-b"], "--model=a-b", "model=a-b"),
    ],
)
def test_a_key_with_dashes(argv, flag, key):
    with pytest.raises(UserError) as error:
        parse_flags(argv)
    assert str(error.value) == (
        f"1 mistake:\n  {flag} is no flag (--help lists those): keys have no dashes, as in {key}"
    )


def test_all_keys_with_dashes_are_told_at_once(capsys):
    assert cli.main(["train", "--lr", "0.1", "seed=2", "--wide", "--epochs=3"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: 3 mistakes:\n")
    assert all(f"as in {key}\n" in error for key in ("lr=0.1", "wide=true", "epochs=3"))


def test_a_secret_with_dashes_is_not_shown(capsys):
    assert cli.main(["train", "--logger.api_key=0123456789abcdef"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: 1 mistake:\n  --logger.api_key=*** is no flag ")
    assert "0123456789abcdef" not in error


def test_flags_and_keys_stand_in_any_order():
    flags = parse_flags(["seed=2", "--cfg", "job", "lr=-1", "--config-dir=conf", "--", "name=-x"])
    assert (flags.cfg, flags.config_dir) == ("job", "conf")
    assert flags.overrides == ["seed=2", "lr=-1", "name=-x"]
