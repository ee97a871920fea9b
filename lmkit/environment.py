"""What a run ran on: versions, checkout, hardware, threads and command line."""

import importlib.metadata
import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lmkit.redaction import mask

PACKAGES = ("lmkit", "torch", "lightning", "hydra-core", "omegaconf", "numpy", "torchmetrics")


def environment(command: Sequence[str]) -> dict[str, Any]:
    """Versions, checkout, hardware, threads and command line of this process."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
    threads: dict[str, Any] = {name: os.environ[name] for name in names if name in os.environ}
    hardware: dict[str, Any] = {
        "processor": next(_processors(), platform.processor()),
        "num_cpus": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
    }
    if torch := sys.modules.get("torch"):  # whoever trains has imported it
        threads["torch"] = torch.get_num_threads()
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        hardware["gpus"] = [torch.cuda.get_device_name(i) for i in range(count)]
    return {
        "versions": {"python": platform.python_version()} | dict(_versions()),
        "git": _checkout(),
        "platform": platform.platform(),
        "hardware": hardware,
        "threads": threads,
        "command": list(map(mask, command)),
    }


def _versions() -> Iterator[tuple[str, str]]:
    for package in PACKAGES:
        try:
            yield package, importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue


def _processors() -> Iterator[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    yield from (line.partition(": ")[2] for line in lines if line.startswith("model name"))


def _checkout() -> dict[str, Any] | None:
    """Commit of the checkout that this file is tracked in, and whether it has changes."""

    def git(*arguments: str) -> str:
        place = Path(__file__).parent
        command = ["git", "-C", str(place), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
        return done.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)
        status = git("status", "--porcelain", "--untracked-files=no")
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(status)}
    except (OSError, subprocess.SubprocessError):
        return None
