"""The environment of a run: versions, repositories, hardware, threads and command line."""

import importlib.metadata
import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import lmkit
from lmkit.system.redaction import mask

PACKAGES = ("torch", "lightning", "hydra-core", "omegaconf", "numpy", "torchmetrics")


def environment(command: Sequence[str]) -> dict[str, Any]:
    """The environment of this process, whose current directory is the user's."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
    threads: dict[str, Any] = {name: os.environ[name] for name in names if name in os.environ}
    hardware: dict[str, Any] = {
        "processor": next(_processors(), platform.processor()),
        "num_cpus": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
    }
    if torch := sys.modules.get("torch"):  # a training has imported it
        threads["torch"] = torch.get_num_threads()
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        hardware["gpus"] = [torch.cuda.get_device_name(i) for i in range(count)]
    # Not imported just for this: a training has imported it.
    if matmul := sys.modules.get("lmkit.kernels.matmul"):
        hardware["fp32_products"] = matmul.fp32_products()
    return {
        "versions": {
            "python": platform.python_version(),
            "lmkit": lmkit.__version__,
            **dict(_versions()),
        },
        "git": checkout(Path.cwd()),
        "lmkit": {"version": lmkit.__version__, "git": _own_checkout()},
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


def checkout(directory: Path) -> dict[str, Any] | None:
    """Commit and branch of the git repository around a directory, and whether tracked files have
    changes; None outside of a repository, or before its first commit."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(directory), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
        return done.stdout.strip()

    try:
        return {
            "commit": git("rev-parse", "HEAD"),
            "branch": git("branch", "--show-current") or None,
            "dirty": bool(git("status", "--porcelain", "--untracked-files=no")),
        }
    except (OSError, subprocess.SubprocessError):
        return None


def _own_checkout() -> dict[str, Any] | None:
    """The checkout of lmkit itself, if it runs from one and is not just installed inside another
    project's."""
    package = Path(__file__).parent
    command = ["git", "-C", str(package), "ls-files", "--error-unmatch", Path(__file__).name]
    try:
        subprocess.run(command, capture_output=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return checkout(package)
