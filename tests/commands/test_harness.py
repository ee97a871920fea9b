"""`lmkit harness` without lm-evaluation-harness; with it: tests/clients/test_harness.py."""

import sys

from trained_run import make_run

from lmkit import cli


def test_its_package_is_named(tmp_path, monkeypatch, capsys):
    run = make_run(tmp_path / "outputs")
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    assert cli.main(["harness", str(run.path), "tasks=blimp"]) == 2
    told = capsys.readouterr().err
    assert told == 'error: lmkit harness needs lm_eval: pip install "recurrent-lmkit[harness]"\n'
