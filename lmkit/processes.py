"""Which of a run's processes this one is, and what they tell each other."""

from __future__ import annotations

import json
import os
import re
import socket
import time
from collections.abc import Mapping
from dataclasses import asdict, astuple, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch.distributed as dist
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.fabric.utilities import move_data_to_device

from lmkit.errors import UserError
from lmkit.redaction import redacted

# How other launchers name the number of processes, and the rank of one.
OTHERS = {
    "WORLD_SIZE": ("RANK", "LOCAL_RANK"),
    "OMPI_COMM_WORLD_SIZE": ("OMPI_COMM_WORLD_RANK",),
    "PMI_SIZE": ("PMI_RANK",),
    "JSM_NAMESPACE_SIZE": ("JSM_NAMESPACE_RANK",),
}


@dataclass(frozen=True)
class Launched:
    """This process's place among those that something else than lmkit has started."""

    by: Literal["torchrun", "slurm"]
    rank: int
    world_size: int
    local_rank: int
    local_world_size: int

    @property
    def num_nodes(self) -> int:
        return self.world_size // self.local_world_size


def launched(environment: Mapping[str, str] = os.environ) -> Launched | None:
    """None where lmkit is to start the processes itself, or there is one.

    Raises UserError where the launcher's variables are incomplete, odd, or those of another.
    """
    if "TORCHELASTIC_RUN_ID" in environment:
        keys = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
        place = Launched("torchrun", *(number(environment, key) for key in keys))
        _check(place, keys)
        return place
    # A batch script has SLURM_NTASKS too, but only the tasks of srun have a step; that of salloc's
    # shell has one task, and SLURM_NTASKS is still the job's.
    step = "SLURM_STEP_NUM_TASKS" in environment
    num_tasks = "SLURM_STEP_NUM_TASKS" if step else "SLURM_NTASKS"
    tasks = number(environment, num_tasks, 1)
    if "SLURM_STEP_ID" in environment and tasks > 1:
        nodes = max(number(environment, "SLURM_NNODES", 1), 1)
        keys = ("SLURM_PROCID", num_tasks, "SLURM_LOCALID", "SLURM_NNODES")
        rank, local_rank = (number(environment, key) for key in (keys[0], keys[2]))
        place = Launched("slurm", rank, tasks, local_rank, tasks // nodes)
        _check(place, keys)
        return place
    _check_alone(environment)
    return None


def number(environment: Mapping[str, str], key: str, default: int | None = None) -> int:
    """What a launcher has set a variable to."""
    value = environment.get(key, default)
    if value is None or not re.fullmatch("[0-9]{1,9}", str(value)):
        what = "is not set" if value is None else f"is {value!r}"
        by = "torchrun" if "TORCHELASTIC_RUN_ID" in environment else "srun"
        raise UserError(f"{key} {what}: expected the number that {by} sets")
    return int(value)


def _check(place: Launched, keys: tuple[str, ...]) -> None:
    """Raises UserError where a process cannot have this place."""
    rank, size, local_rank, local_size = astuple(place)[1:]
    if rank < size and local_rank < local_size <= size and size % local_size == 0:
        return
    values = (rank, size, local_rank, place.num_nodes if place.by == "slurm" else local_size)
    said = ", ".join(f"{key}={value}" for key, value in zip(keys, values, strict=True))
    raise UserError(
        f"{said}: ranks are below the number of processes, of which every node has as many; "
        f"start them with {'srun' if place.by == 'slurm' else 'torchrun'}"
    )


def _check_alone(environment: Mapping[str, str]) -> None:
    """Raises UserError where another launcher says that there are others: each would train by
    itself, and Lightning would have all but rank 0 write nothing."""
    for size, ranks in OTHERS.items():
        given = {key: environment[key] for key in (size, *ranks) if key in environment}
        sound = given.get(size) == "1" and {"0"}.issuperset(
            given[key] for key in ranks if key in given
        )
        if given and not sound:
            said = ", ".join(f"{key}={value}" for key, value in given.items())
            raise UserError(
                f"{said}, but neither torchrun nor srun has started this process, and lmkit joins "
                f"theirs alone: start it with one of them, or unset {' '.join(given)}"
            )


def cluster() -> ClusterEnvironment:
    """What Lightning is to know of the processes, whatever else the environment says."""
    if launched():
        return TorchElasticEnvironment()
    alone = LightningEnvironment()
    alone.set_global_rank(0)
    return alone


def broadcast(value: Any) -> Any:
    """The value of rank 0; called by all processes."""
    values = [value]
    if dist.is_initialized():
        dist.broadcast_object_list(values)
    return values[0]


def gather(value: Any) -> list[Any]:
    """The values of all processes, by rank, their tensors on the CPU; called by all of them."""
    value = move_data_to_device(value, "cpu")
    if not dist.is_initialized():
        return [value]
    values = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


@dataclass(frozen=True)
class Failure:
    """How a process of a run has ended, for its parent: `died` if another try may do better,
    `signum` if it was stopped."""

    rank: int
    what: str
    stack: str
    died: bool = False
    mistake: bool = False  # the user's: what says it all
    signum: int = 0
    time: float = field(default_factory=time.time)
    process: str = field(default_factory=lambda: f"process {os.getpid()} on {socket.gethostname()}")

    def write(self, directory: Path) -> None:
        file = directory / f"rank-{self.rank}.failure.json"
        file.write_text(json.dumps(redacted(asdict(self))), encoding="utf-8")

    @classmethod
    def take(cls, directory: Path) -> list[Failure]:
        """All that have been written, the earliest first; they are gone afterwards."""
        found = []
        for file in directory.glob("rank-*.failure.json"):
            found.append(cls(**json.loads(file.read_text(encoding="utf-8"))))
            file.unlink()
        return sorted(found, key=lambda failure: failure.time)
