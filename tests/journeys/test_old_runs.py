"""What commit aef4429 has written: its runs load, evaluate and go on, its stores are read.

`fixtures/aef4429` was made there, in a directory /old, from `text` (S: settings, in config.yaml):

    lmkit train data=files data.path=text data.unit=paragraph tokenizer=word S run_id=files
    lmkit prepare data=files data.path=text data.unit=paragraph tokenizer=word store=store
    lmkit train data=store data.path=store S run_id=store

Of the checkpoints of each run those of step 5, within the first epoch, and of step 16, the last,
are kept; command and host are rewritten.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
from trained_run import real_stdout

from lmkit import cli
from lmkit.config.targets import resolve_target
from lmkit.run.checkpoints import load_checkpoint
from lmkit.run.environment import environment

OLD = Path(__file__).parents[1] / "fixtures" / "aef4429"
TIMES = {"seconds", "train/tokens_per_second"}
TARGETS = {
    "corpus": ["Pydocs", "Files", "Jsonl", "Parquet", "WikiText", "HuggingFace", "MemoryProbe"],
    "tokenizer": ["Word", "ByteLevelBPE", "Characters", "Bytes", "Pretrained", "Stored"],
    "model": ["LSTM", "GRU", "Elman", "Window"],
    "head": ["FullSoftmax"],
    "optim": ["WarmupCosine", "WarmupLinear"],
    "stored": ["Store", "Mixture"],
    "datatrove_tokens": ["Datatrove"],
    "guard": ["StopOnNonFinite"],
    "logs": ["Samples", "WandbLogger"],
    "checkpoint": ["Checkpoint"],
    "watchdog": ["Watchdog"],
}


@pytest.fixture(params=["files", "store"])
def killed(request, tmp_path) -> tuple[Path, str]:
    """A run as it was when it was killed after step 5, and where its data is by now."""
    for name in ("text", "store"):
        shutil.copytree(OLD / name, tmp_path / name)
    run = tmp_path / "outputs" / "old" / request.param
    shutil.copytree(OLD / "runs" / "old" / request.param, run)
    for name in ("step-000000016.ckpt", "step-000000016.json"):
        (run / "checkpoints" / name).unlink()
    (run / "checkpoints" / "last.ckpt").symlink_to("step-000000005.ckpt")
    (run / "summary.json").unlink()
    status = json.loads((run / "status.json").read_text())
    (run / "status.json").write_text(json.dumps(status | {"status": "running", "exit_code": None}))
    data = "text" if request.param == "files" else "store"
    return run, f"data.path={tmp_path / data}"


def rows(run: Path) -> list[dict]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in TIMES} for line in lines]


def is_same_machine(run: Path) -> bool:
    """Whether bits can be the same: by processor and version of PyTorch."""
    there, here = json.loads((run / "environment.json").read_text()), environment([])
    return (there["versions"]["torch"], there["hardware"]["processor"]) == (
        here["versions"]["torch"],
        here["hardware"]["processor"],
    )


def test_a_run_goes_on_to_the_end_that_it_had(killed):
    run, data = killed
    whole = OLD / "runs" / "old" / run.name
    assert cli.main(["resume", str(run), data]) == 0
    found, expected = rows(run), rows(whole)
    assert [row.keys() for row in found] == [row.keys() for row in expected]
    state = load_checkpoint(run / "checkpoints" / "last.ckpt")["state_dict"]
    weights = load_checkpoint(whole / "checkpoints" / "step-000000016.ckpt")["state_dict"]
    assert state.keys() == weights.keys()
    exact = is_same_machine(whole)
    for name, tensor in weights.items():
        torch.testing.assert_close(state[name], tensor, rtol=0, atol=0 if exact else 1e-5)
    for one, other in zip(found, expected, strict=True):
        # Figures were float32 when they were logged.
        assert one == pytest.approx(other, rel=1e-6 if exact else 1e-4)


def test_a_run_is_evaluated_as_it_was(killed, capfd):
    run, data = killed
    whole = OLD / "runs" / "old" / run.name
    shutil.copytree(whole / "checkpoints", run / "checkpoints", dirs_exist_ok=True)
    capfd.readouterr()
    argv = ["evaluate", str(run), data, "checkpoint=step-000000016", "split=test", "format=json"]
    with real_stdout():
        assert cli.main(argv) == 0
    (result,) = json.loads(capfd.readouterr().out)["results"]
    summary = json.loads((whole / "summary.json").read_text())
    assert result["nll"] == pytest.approx(summary["test/nll"], rel=1e-5)


def test_a_store_is_whole(tmp_path):
    shutil.copytree(OLD / "store", tmp_path / "store")
    assert cli.main(["prepare", "verify=true", f"store={tmp_path / 'store'}"]) == 0


@pytest.mark.parametrize(
    "target", [f"lmkit.{m}.{name}" for m, names in TARGETS.items() for name in names]
)
def test_what_a_config_names_is_there(target):
    assert resolve_target(target).__name__ == target.rpartition(".")[2]
