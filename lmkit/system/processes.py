"""Reads from the launcher's variables which of a run's processes this one is.

This needs no torch: Lightning reads the variables when it is imported, and they are checked before.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from lmkit.errors import UserError

# The variables of other launchers for the number of processes and the rank.
OTHERS = {
    "WORLD_SIZE": ("RANK", "LOCAL_RANK"),
    "OMPI_COMM_WORLD_SIZE": ("OMPI_COMM_WORLD_RANK",),
    "PMI_SIZE": ("PMI_RANK",),
    "JSM_NAMESPACE_SIZE": ("JSM_NAMESPACE_RANK",),
}


@dataclass(frozen=True)
class Launched:
    """The rank of this process among those that torchrun or SLURM has started."""

    by: Literal["torchrun", "slurm"]
    rank: int
    world_size: int
    local_rank: int
    local_world_size: int

    @property
    def num_nodes(self) -> int:
        return self.world_size // self.local_world_size


def launched(environment: Mapping[str, str] = os.environ) -> Launched | None:
    """This process as torchrun or SLURM started it; None if neither has, so that lmkit starts any
    others itself.

    Raises UserError if the launcher's variables are incomplete, impossible, or another launcher's.
    """
    if "TORCHELASTIC_RUN_ID" in environment:
        keys = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
        process = Launched("torchrun", *(number(environment, key) for key in keys))
        _check(process, environment, keys)
        return process
    # A batch script has SLURM_NTASKS too, but only the tasks of srun have a step. The step of
    # salloc's shell has one task, while SLURM_NTASKS is the job's.
    num_tasks = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in environment else "SLURM_NTASKS"
    tasks = number(environment, num_tasks, 1)
    number(environment, "SLURM_PROCID", 0)  # Lightning's import fails if it is not a number
    if "SLURM_STEP_ID" in environment and tasks > 1:
        for key in ("RANK", "LOCAL_RANK"):  # scripts may set them
            number(environment, key, 0)
        keys = ("SLURM_PROCID", "SLURM_LOCALID", num_tasks, "SLURM_NNODES")
        rank, local_rank = (number(environment, key) for key in keys[:2])
        tasks_of_node, left = divmod(tasks, number(environment, "SLURM_NNODES", 1) or 1)
        process = Launched("slurm", rank, tasks, local_rank, 0 if left else tasks_of_node)
        _check(process, environment, keys)
        return process
    _check_alone(environment)
    return None


def number(
    environment: Mapping[str, str], key: str, default: int | None = None, *, most: int = 10**9
) -> int:
    """The number in a launcher's variable; raises UserError if it is not one."""
    value = environment.get(key, default)
    if value is None or not re.fullmatch("[0-9]{1,9}", str(value)) or int(value) > most:
        what = "is not set" if value is None else f"is {value!r}"
        by = "torchrun" if "TORCHELASTIC_RUN_ID" in environment else "srun"
        raise UserError(f"{key} {what}: expected the number that {by} sets")
    return int(value)


def _check(process: Launched, environment: Mapping[str, str], keys: Iterable[str]) -> None:
    """Raise UserError if no process can have these ranks and numbers of processes."""
    below = process.rank < process.world_size and process.local_rank < process.local_world_size
    if not below or process.world_size % process.local_world_size:
        numbers = ", ".join(f"{key}={environment[key]}" for key in keys if key in environment)
        raise UserError(
            f"{numbers} cannot be: every node has as many processes, and ranks are below their "
            "numbers; have torchrun or srun set them"
        )


def _check_alone(environment: Mapping[str, str]) -> None:
    """Raise UserError if another launcher has started several processes: each would train by
    itself, and with Lightning all but rank 0 would write nothing."""
    for size, ranks in OTHERS.items():
        values = {key: environment[key] for key in (size, *ranks) if key in environment}
        alone = {size: "1"} | {key: "0" for key in values if key != size}
        if values and values != alone:
            shown = " ".join(f"{key}={value}" for key, value in values.items())
            raise UserError(
                f"{shown}, but neither torchrun nor srun has started this process, and lmkit joins "
                f"theirs alone: start it with one of them, or unset {' '.join(values)}"
            )
