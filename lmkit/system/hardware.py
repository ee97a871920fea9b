"""The accelerators of this machine, and what the `auto` values of a config mean on it."""

from __future__ import annotations

import contextlib
import resource
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

# Before cuDNN 9.13 its recurrent kernels reject bf16.
CUDNN_BF16 = 91300


def accelerator(name: str) -> str:
    """`cpu`, `cuda` or `mps`; `auto` is the best that is available, `gpu` is `cuda`."""
    if name == "auto":
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    return "cuda" if name == "gpu" else name


def is_available(name: str) -> bool:
    """Whether this machine has an accelerator, named as `accelerator` does."""
    if name == "cuda":
        return torch.cuda.is_available()
    return name == "cpu" or (name == "mps" and torch.backends.mps.is_available())


def num_here(name: str) -> int | None:
    """The number of devices of an accelerator here; None for the CPU, which processes share."""
    if name == "cpu":
        return None
    return torch.cuda.device_count() if name == "cuda" else 1


def fast_bf16(name: str) -> bool:
    """Whether an accelerator multiplies bf16 natively, also in its recurrent kernels."""
    if name == "cuda":
        return (
            torch.cuda.is_available()
            and torch.cuda.is_bf16_supported(including_emulation=False)
            and (torch.backends.cudnn.version() or 0) >= CUDNN_BF16
        )
    if name == "cpu":
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return False


def precision(name: str) -> str:
    """The meaning of `trainer.precision=auto` on an accelerator: the fastest that trains well."""
    if fast_bf16(name):
        return "bf16-mixed"
    return "16-mixed" if name == "cuda" else "32-true"


def peak_memory(device: torch.device) -> int:
    """The peak memory in bytes so far: of tensors on a GPU, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # Linux counts ru_maxrss in KiB, macOS in bytes.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024)


def are_devices(value: object, name: str) -> bool:
    """Whether a value is a number of devices or, for GPUs only, a list of device numbers."""
    if not isinstance(value, str | list):
        return not isinstance(value, float)
    if isinstance(value, str) and "," not in value:
        return value.isdecimal() and int(value) > 0
    numbers = value.rstrip(",").split(",") if isinstance(value, str) else [str(n) for n in value]
    chosen = {int(number) for number in numbers if number.strip().isdecimal()}
    return name == "cuda" and len(chosen) == len(numbers) > 0


def num_devices(trainer: Mapping[str, Any]) -> int:
    """The number of processes on this node: one per device of the composed `trainer` group."""
    devices = trainer.get("devices", "auto")
    if isinstance(devices, list):
        return len(devices)
    if isinstance(devices, str) and devices != "auto":
        numbers = [number for number in devices.split(",") if number.strip()]
        devices = len(numbers) if "," in devices else int(numbers[0])
    if devices in ("auto", -1):
        name = accelerator(str(trainer.get("accelerator", "auto")))
        return max(torch.cuda.device_count(), 1) if name == "cuda" else 1
    return int(devices)


def forget_peak_memory() -> None:
    """Make `peak_memory` count from now on, if the system can do so."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # proc(5)


def num_processes(trainer: Mapping[str, Any]) -> int:
    """The number of processes on all nodes, over which the lanes are divided."""
    return num_devices(trainer) * int(trainer.get("num_nodes", 1))
