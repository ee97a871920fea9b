"""Who has started this process, by the environment that torchrun and srun give."""

import json
import os
import re
import subprocess
import sys

import pytest
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_only

from lmkit.config.check import check
from lmkit.config.compose import compose
from lmkit.errors import UserError
from lmkit.system.processes import Launched, launched
from lmkit.system.rendezvous import cluster
from lmkit.training.failure import Failure

TORCHRUN = {
    **{"TORCHELASTIC_RUN_ID": "none", "RANK": "5", "WORLD_SIZE": "8"},
    **{"LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"},
}
SRUN = {
    **{"SLURM_STEP_ID": "0", "SLURM_NTASKS": "6", "SLURM_NNODES": "3"},
    **{"SLURM_PROCID": "4", "SLURM_LOCALID": "0"},
}


def _less(environment: dict[str, str], key: str) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name != key}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        (TORCHRUN, Launched("torchrun", 5, 8, 1, 4)),
        (SRUN, Launched("slurm", 4, 6, 0, 2)),
        ({**SRUN, "SLURM_NTASKS": "1"}, None),
        ({key: SRUN[key] for key in SRUN if key != "SLURM_STEP_ID"}, None),  # a batch script
        ({**SRUN, "SLURM_STEP_NUM_TASKS": "1"}, None),  # the shell of an interactive salloc
        ({**SRUN, "SLURM_STEP_NUM_TASKS": "3"}, "SLURM_PROCID=4, SLURM_LOCALID=0, "),
        ({**SRUN, "SLURM_NTASKS": "x"}, "SLURM_NTASKS is 'x': expected the number that srun sets"),
        ({"SLURM_NTASKS": "x"}, "SLURM_NTASKS is 'x': "),
        ({"SLURM_PROCID": "x"}, "SLURM_PROCID is 'x': "),
        ({**SRUN, "RANK": "4", "LOCAL_RANK": "0"}, Launched("slurm", 4, 6, 0, 2)),
        ({**SRUN, "RANK": "x"}, "RANK is 'x': "),
        ({**SRUN, "SLURM_NTASKS": "-2"}, "SLURM_NTASKS is '-2': "),
        ({**SRUN, "SLURM_NTASKS": "5"}, "SLURM_NTASKS=5, SLURM_NNODES=3 cannot be: every node has"),
        ({**SRUN, "SLURM_NTASKS": "2"}, "SLURM_NTASKS=2, SLURM_NNODES=3 cannot be: "),
        ({**SRUN, "SLURM_NNODES": "0", "SLURM_NTASKS": "4"}, "SLURM_PROCID=4, SLURM_LOCALID=0, "),
        ({**SRUN, "SLURM_PROCID": "6"}, "SLURM_PROCID=6, SLURM_LOCALID=0, SLURM_NTASKS=6, "),
        ({**SRUN, "SLURM_LOCALID": "2"}, "SLURM_LOCALID=2, SLURM_NTASKS=6, SLURM_NNODES=3 cannot"),
        (_less(SRUN, "SLURM_PROCID"), "SLURM_PROCID is not set: expected the number that srun"),
        (_less(SRUN, "SLURM_LOCALID"), "SLURM_LOCALID is not set: "),
        (_less(TORCHRUN, "RANK"), "RANK is not set: expected the number that torchrun sets"),
        (_less(TORCHRUN, "LOCAL_WORLD_SIZE"), "LOCAL_WORLD_SIZE is not set: "),
        ({**TORCHRUN, "WORLD_SIZE": "8.0"}, "WORLD_SIZE is '8.0': "),
        (
            {**TORCHRUN, "RANK": "8"},
            "RANK=8, WORLD_SIZE=8, LOCAL_RANK=1, LOCAL_WORLD_SIZE=4 ",
        ),
        ({**TORCHRUN, "LOCAL_RANK": "4"}, "LOCAL_RANK=4, LOCAL_WORLD_SIZE=4 cannot be: "),
        ({**TORCHRUN, "LOCAL_WORLD_SIZE": "3"}, "LOCAL_WORLD_SIZE=3 cannot be: "),
        ({**TORCHRUN, "LOCAL_WORLD_SIZE": "0"}, "LOCAL_WORLD_SIZE=0 cannot be: "),
        ({"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}, None),  # as some containers have it
        (
            {"RANK": "1"},
            "RANK=1, but neither torchrun nor srun has started this process",
        ),
        ({"RANK": "0"}, "start it with one of them, or unset RANK"),
        ({"WORLD_SIZE": "x"}, "WORLD_SIZE=x, but neither "),
        ({"WORLD_SIZE": "2", "RANK": "0"}, "WORLD_SIZE=2 RANK=0, but neither "),
        ({"WORLD_SIZE": "1", "LOCAL_RANK": "1"}, "WORLD_SIZE=1 LOCAL_RANK=1, but neither "),
        ({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1"}, "or unset OMPI_COMM_WORLD_"),
    ],
)
def test_launched(environment, expected):
    if isinstance(expected, str):
        with pytest.raises(UserError, match=re.escape(expected)):
            launched(environment)
    else:
        assert launched(environment) == expected


@pytest.mark.parametrize("key", ["RANK", "LOCAL_RANK", "SLURM_PROCID"])
def test_it_is_told_before_lightning_is_imported(key):
    """Which reads these as it is, and raises of one that is no number."""
    command = [sys.executable, "-m", "lmkit", "train"]
    done = subprocess.run(command, env={**os.environ, key: "x"}, capture_output=True, text=True)
    assert done.returncode == 2
    assert re.match(rf"error: {key}.*x.*\n$", done.stderr)


def test_what_a_cluster_says_of_others_changes_nothing_alone(monkeypatch):
    """By SLURM_NTASKS in a batch script Lightning raises, by a rank of 1 it writes no rows."""
    monkeypatch.setenv("SLURM_NTASKS", "2")
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    trainer = Trainer(plugins=[cluster(launched())], accelerator="cpu", devices=1, logger=False,
                      enable_checkpointing=False)  # fmt: skip
    assert (trainer.world_size, trainer.is_global_zero, rank_zero_only.rank) == (1, True, 0)


@pytest.mark.parametrize("step", [{}, {"SLURM_STEP_ID": "0", "SLURM_PROCID": "1"}])
def test_the_check_takes_slurms_variables_as_they_are(monkeypatch, tmp_path, step):
    """In which Lightning by itself finds mistakes."""
    (tmp_path / "text.txt").write_text("a text")
    for key, value in {"SLURM_NTASKS": "2", "SLURM_LOCALID": "1", **step}.items():
        monkeypatch.setenv(key, value)
    config, _ = check(compose(["data=files", f"data.path={tmp_path}", "trainer=ddp_cpu"]))
    assert config["trainer"]["devices"] == 2


def test_num_nodes():
    assert Launched("torchrun", 5, 8, 1, 4).num_nodes == 2


def test_failures_are_taken_once_the_earliest_first(tmp_path):
    for rank, time in ((0, 2.0), (1, 1.0)):
        Failure(rank, "raised", "stack", time=time).write(tmp_path)
    assert json.loads((tmp_path / "rank-1.failure.json").read_text())["rank"] == 1
    assert [failure.rank for failure in Failure.take(tmp_path)] == [1, 0]
    assert Failure.take(tmp_path) == []
