"""Processes that wait for others: what they say, and when they give up."""

import os
import re
import signal
import socket
import threading

import pytest

from lmkit.errors import UserError
from lmkit.system import rendezvous
from lmkit.system.processes import Launched
from lmkit.system.rendezvous import meet
from lmkit.system.signals import Stopped, StopSignals

CPU = {"accelerator": "cpu"}
FIRST, SECOND = (Launched("slurm", rank, 2, rank, 2) for rank in (0, 1))


@pytest.fixture
def port(monkeypatch) -> int:
    """A free one, which SLURM's tasks are to meet at within a moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        number = probe.getsockname()[1]
    for key, value in {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(number)}.items():
        monkeypatch.setenv(key, value)
    for key in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "GROUP_RANK"):  # which `meet` sets
        monkeypatch.setenv(key, "")
    monkeypatch.setattr(rendezvous, "WORD", 0.5)
    monkeypatch.setattr(rendezvous, "LIMIT", 1.0)
    return number


@pytest.mark.parametrize(
    ("place", "missing", "why"), [(FIRST, 1, ""), (SECOND, 0, r" \(Connection refused\)")]
)
def test_one_that_does_not_come_is_named_and_not_waited_for_for_ever(
    port, capsys, place, missing, why
):
    said = rf"rank {place.rank} waits for rank {missing} of 2 at 127\.0\.0\.1:{port}, 1 s{why}"
    with pytest.raises(UserError) as caught:
        meet(place, CPU)
    end = ": start all; for a run of this process alone, unset SLURM_STEP_ID"
    assert re.fullmatch(said + end, str(caught.value))
    assert re.fullmatch(said + "\n", capsys.readouterr().err)


@pytest.mark.parametrize("place", [FIRST, SECOND])
def test_one_that_is_stopped_while_it_waits_says_so(port, capsys, place):
    timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM))
    timer.start()
    with StopSignals(), pytest.raises(Stopped):
        meet(place, CPU)
    assert capsys.readouterr().err == f"rank {place.rank}: stopped by SIGTERM while it waited\n"


def test_a_port_that_is_taken_is_named(port):
    with socket.socket() as other:
        other.bind(("127.0.0.1", port))
        other.listen()
        with pytest.raises(UserError, match=f"^rank 0 cannot meet the others at .*:{port}: "):
            meet(FIRST, CPU)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"MASTER_PORT": "x"}, "MASTER_PORT is 'x': expected the number that srun sets"),
        ({"MASTER_PORT": "65536"}, "MASTER_PORT is '65536': "),
        ({"MASTER_PORT": None}, "SLURM_JOB_ID is not set: "),
        ({"SLURM_NODEID": "first"}, "SLURM_NODEID is 'first': "),
    ],
)
def test_an_address_that_cannot_be(port, monkeypatch, changes, message):
    for key, value in changes.items():
        monkeypatch.setenv(key, value) if value else monkeypatch.delenv(key)
    with pytest.raises(UserError, match=f"^{message}"):
        meet(FIRST, CPU)


def test_torchrun_says_where(port, monkeypatch):
    monkeypatch.delenv("MASTER_ADDR")
    with pytest.raises(UserError, match=r"^MASTER_ADDR is not set: expected the host"):
        meet(Launched("torchrun", 0, 2, 0, 2), CPU)


@pytest.mark.parametrize(
    ("trainer", "backend"),
    [
        (CPU, "gloo"),
        ({"accelerator": "cuda", "strategy": "ddp"}, "nccl"),
        ({"accelerator": "cuda", "strategy": {"process_group_backend": "gloo"}}, "gloo"),
        ({"accelerator": "cuda", "strategy": {"find_unused_parameters": False}}, "nccl"),
    ],
)
def test_values_are_exchanged_by_what_the_strategy_names(port, monkeypatch, trainer, backend):
    made, devices = [], []
    monkeypatch.setattr(rendezvous, "_gathered", lambda *_: None)
    monkeypatch.setattr(rendezvous.dist, "init_process_group", lambda by, **_: made.append(by))
    monkeypatch.setattr(rendezvous.torch.cuda, "set_device", devices.append)
    meet(SECOND, trainer)
    assert made == [backend]
    assert devices == ([1] if trainer["accelerator"] == "cuda" else [])
