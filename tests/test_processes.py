"""Who has started this process, by the environment that torchrun and srun give."""

import json

import pytest

from lmkit.processes import Failure, Launched, launched

TORCHRUN = {
    **{"TORCHELASTIC_RUN_ID": "none", "RANK": "5", "WORLD_SIZE": "8"},
    **{"LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"},
}
SRUN = {
    **{"SLURM_STEP_ID": "0", "SLURM_NTASKS": "6", "SLURM_NNODES": "3"},
    **{"SLURM_PROCID": "4", "SLURM_LOCALID": "0"},
}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        (TORCHRUN, Launched("torchrun", 5, 8, 1, 4)),
        (SRUN, Launched("slurm", 4, 6, 0, 2)),
        ({**SRUN, "SLURM_NTASKS": "1"}, None),
        ({key: SRUN[key] for key in SRUN if key != "SLURM_STEP_ID"}, None),  # a batch script
    ],
)
def test_launched(environment, expected):
    assert launched(environment) == expected


def test_num_nodes():
    assert Launched("torchrun", 5, 8, 1, 4).num_nodes == 2


def test_failures_are_taken_once_the_earliest_first(tmp_path):
    for rank, time in ((0, 2.0), (1, 1.0)):
        Failure(rank, "raised", "stack", time=time).write(tmp_path)
    assert json.loads((tmp_path / "rank-1.failure.json").read_text())["rank"] == 1
    assert [failure.rank for failure in Failure.take(tmp_path)] == [1, 0]
    assert Failure.take(tmp_path) == []
