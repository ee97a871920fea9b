"""How the processes of a run wait for each other and exchange values."""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.fabric.utilities import move_data_to_device
from torch._C._distributed_c10d import Store, TCPStore

from lmkit.errors import UserError
from lmkit.system.processes import Launched, number
from lmkit.system.signals import Stopped

LIMIT = 300.0  # seconds within which all processes must come
WORD = 5.0  # seconds of waiting before the first message
TIMEOUT = timedelta(minutes=30)  # of later exchanges, the same as Lightning's


def meet(process: Launched, trainer: Mapping[str, Any]) -> None:
    """Wait for the other processes, with messages, and make the group that Lightning then uses.

    trainer: the config's, whose accelerator and strategy say by what they exchange values.
    Raises UserError if a process does not come within LIMIT seconds.
    """
    host, port = _address(process)
    if process.by == "slurm":  # set torchrun's variables, which `cluster` uses
        node = number(os.environ, "SLURM_NODEID", process.rank // process.local_world_size)
        numbers = {"RANK": process.rank, "WORLD_SIZE": process.world_size}
        numbers |= {"LOCAL_RANK": process.local_rank, "GROUP_RANK": node, "MASTER_PORT": port}
        os.environ |= {"MASTER_ADDR": host} | {key: str(n) for key, n in numbers.items()}
    if trainer["accelerator"] == "cuda":
        torch.cuda.set_device(process.local_rank)
    dist.init_process_group(
        _backend(trainer),
        store=_gathered(process, host, port),
        rank=process.rank,
        world_size=process.world_size,
        timeout=TIMEOUT,
    )


def _backend(trainer: Mapping[str, Any]) -> str:
    strategy = trainer.get("strategy")
    named = strategy.get("process_group_backend") if isinstance(strategy, Mapping) else None
    return named or ("nccl" if trainer["accelerator"] == "cuda" else "gloo")


def _address(process: Launched) -> tuple[str, int]:
    """Host and port of the store through which processes find each other."""
    host = os.environ.get("MASTER_ADDR")
    if process.by == "slurm":
        nodes = os.environ.get("SLURM_STEP_NODELIST", os.environ.get("SLURM_NODELIST"))
        host = host or SLURMEnvironment.resolve_root_node_address(nodes or "")
        if "MASTER_PORT" not in os.environ:  # the same for all tasks of a job
            job = number(os.environ, "SLURM_JOB_ID")
            return host or "127.0.0.1", 15_000 + job % 10_000
    if not host:
        raise UserError("MASTER_ADDR is not set: expected the host that torchrun sets")
    return host, number(os.environ, "MASTER_PORT", most=65535)


def _gathered(process: Launched, host: str, port: int) -> Store:
    """A store in which every process has set its key.

    torch's own wait is in C++: for half an hour it handles no signals and prints nothing.
    """
    wait = _Wait(process, f"{host}:{port}")
    # If no process serves the store, torchrun's agent does.
    serves = process.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    try:
        while not serves and (reason := _unreachable(host, port)):
            wait.on([0], f" ({reason})")
        store = TCPStore(
            *(host, port, process.world_size, serves),
            timeout=timedelta(seconds=WORD),
            wait_for_workers=False,
        )
        store.set_timeout(TIMEOUT)
        keys = [f"lmkit/{rank}" for rank in range(process.world_size)]
        store.set(keys[process.rank], "here")
        while not store.check(keys):
            wait.on([rank for rank, key in enumerate(keys) if not store.check([key])])
    except Stopped as stopped:
        print(f"rank {process.rank}: stopped by {stopped.name} while it waited", file=sys.stderr)
        raise
    except dist.DistError as error:
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"rank {process.rank} cannot meet the others at {host}:{port}: {reason}"
        ) from error
    return store


def _unreachable(host: str, port: int) -> str | None:
    """The reason why a port cannot be reached, None if it can."""
    try:
        socket.create_connection((host, port), timeout=2).close()
    except OSError as error:
        return error.strerror or str(error)
    return None


class _Wait:
    """A wait for other processes: a message after WORD seconds, then two a minute, and an error at
    LIMIT."""

    def __init__(self, process: Launched, address: str) -> None:
        self.process = process
        self.address = address
        self.began = time.monotonic()
        self.next = WORD

    def on(self, missing: list[int], why: str = "") -> None:
        """Wait a little for ranks that are missing."""
        seconds = time.monotonic() - self.began
        ranks = ", ".join(map(str, missing[:8])) + (", ..." if len(missing) > 8 else "")
        message = (
            f"rank {self.process.rank} waits for rank {ranks} of {self.process.world_size} at "
            f"{self.address}, {seconds:.0f} s{why}"
        )
        if seconds > LIMIT:
            alone = "; for a run of this process alone, unset SLURM_STEP_ID"
            raise UserError(f"{message}: start all{alone if self.process.by == 'slurm' else ''}")
        if seconds > self.next:
            print(message, file=sys.stderr, flush=True)
            self.next += 30
        time.sleep(0.1)


def cluster(process: Launched | None) -> ClusterEnvironment:
    """Lightning's description of the processes, whatever else the environment says."""
    if process:
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
