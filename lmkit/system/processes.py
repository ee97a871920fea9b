"""Which of a run's processes this one is, by what its launcher says.

No torch: Lightning reads these variables as it is imported, so they are looked at before.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from lmkit.errors import UserError

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
        _check(place, environment, keys)
        return place
    # A batch script has SLURM_NTASKS too, but only the tasks of srun have a step; that of salloc's
    # shell has one task, and SLURM_NTASKS is still the job's.
    num_tasks = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in environment else "SLURM_NTASKS"
    tasks = number(environment, num_tasks, 1)
    number(environment, "SLURM_PROCID", 0)  # Lightning's import fails of one that is none
    if "SLURM_STEP_ID" in environment and tasks > 1:
        for key in ("RANK", "LOCAL_RANK"):  # as scripts set them
            number(environment, key, 0)
        keys = ("SLURM_PROCID", "SLURM_LOCALID", num_tasks, "SLURM_NNODES")
        rank, local_rank = (number(environment, key) for key in keys[:2])
        tasks_of_node, left = divmod(tasks, number(environment, "SLURM_NNODES", 1) or 1)
        place = Launched("slurm", rank, tasks, local_rank, 0 if left else tasks_of_node)
        _check(place, environment, keys)
        return place
    _check_alone(environment)
    return None


def number(
    environment: Mapping[str, str], key: str, default: int | None = None, *, most: int = 10**9
) -> int:
    """What a launcher has set a variable to."""
    value = environment.get(key, default)
    if value is None or not re.fullmatch("[0-9]{1,9}", str(value)) or int(value) > most:
        what = "is not set" if value is None else f"is {value!r}"
        by = "torchrun" if "TORCHELASTIC_RUN_ID" in environment else "srun"
        raise UserError(f"{key} {what}: expected the number that {by} sets")
    return int(value)


def _check(place: Launched, environment: Mapping[str, str], keys: Iterable[str]) -> None:
    """Raises UserError where no process can have this place."""
    below = place.rank < place.world_size and place.local_rank < place.local_world_size
    if not below or place.world_size % place.local_world_size:
        given = ", ".join(f"{key}={environment[key]}" for key in keys if key in environment)
        raise UserError(
            f"{given} cannot be: every node has as many processes, and ranks are below their "
            "numbers; have torchrun or srun set them"
        )


def _check_alone(environment: Mapping[str, str]) -> None:
    """Raises UserError where another launcher says that there are others: each would train by
    itself, and Lightning would have all but rank 0 write nothing."""
    for size, ranks in OTHERS.items():
        given = {key: environment[key] for key in (size, *ranks) if key in environment}
        alone = {size: "1"} | {key: "0" for key in given if key != size}
        if given and given != alone:
            said = " ".join(f"{key}={value}" for key, value in given.items())
            raise UserError(
                f"{said}, but neither torchrun nor srun has started this process, and lmkit joins "
                f"theirs alone: start it with one of them, or unset {' '.join(given)}"
            )
