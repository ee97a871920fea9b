"""Which of a run's processes this one is, and what they tell each other."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path
from socket import gethostname
from typing import Any, Literal

import torch
import torch.distributed as dist
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.utilities import move_data_to_device

from lmkit.redaction import redacted


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
    """None where lmkit is to start the processes itself, or there is one."""
    if "TORCHELASTIC_RUN_ID" in environment:
        keys = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
        return Launched("torchrun", *(int(environment[key]) for key in keys))
    # A batch script has SLURM_NTASKS too, but only the tasks of srun have a step.
    tasks = int(environment.get("SLURM_NTASKS", 1))
    if "SLURM_STEP_ID" in environment and tasks > 1:
        nodes = int(environment.get("SLURM_NNODES", 1))
        rank, local_rank = (int(environment[key]) for key in ("SLURM_PROCID", "SLURM_LOCALID"))
        return Launched("slurm", rank, tasks, local_rank, tasks // nodes)
    return None


def meet(place: Launched, accelerator: str) -> None:
    """Wait for the other processes; Lightning finds the group made."""
    if place.by == "slurm":
        # Lightning insists on it, though `srun --ntasks` alone is as good.
        os.environ.setdefault("SLURM_NTASKS_PER_NODE", str(place.local_world_size))
        cluster = SLURMEnvironment(auto_requeue=False)
        os.environ |= {"MASTER_ADDR": cluster.main_address, "MASTER_PORT": str(cluster.main_port)}
    backend = "nccl" if accelerator == "cuda" else "gloo"
    if backend == "nccl":
        torch.cuda.set_device(place.local_rank)
    dist.init_process_group(
        backend, rank=place.rank, world_size=place.world_size, timeout=timedelta(minutes=30)
    )


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
    machine: bool = False  # of which that of the machine
    failed: bool = False  # what was to come of the work did not: the same
    signum: int = 0
    time: float = field(default_factory=time.time)
    process: str = field(default_factory=lambda: f"process {os.getpid()} on {gethostname()}")

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
