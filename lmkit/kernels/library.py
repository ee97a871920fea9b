"""The library of compiled kernels for the recurrent hot path on the CPU: built, loaded, called.

The C code in `native/` is compiled for this machine at first use, in about two seconds, and kept in
the user's cache directory. Without a compiler PyTorch's own operators compute the same numbers, up
to rounding.
"""

from __future__ import annotations

import atexit
import ctypes
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from lmkit.kernels.matmul import exact_on_gpu

Kernels = Literal["auto", "compiled", "graphs", "torch"]

NATIVE = Path(__file__).with_name("native")
FLAGS = ("-O3", "-march=native", "-fPIC", "-fopenmp", "-std=gnu11")
UNITS = 16  # hidden units and inputs are padded to a multiple of this
SUFFIX = {torch.float32: "f32", torch.bfloat16: "bf16"}

_in_use: Kernels = "auto"


@contextmanager
def use(kernels: Kernels) -> Iterator[None]:
    """Within this context `torch` turns the compiled kernels off; otherwise they are used if they
    are available. `graphs` lets training capture its steps as CUDA graphs. What is fp32 is
    multiplied as such, on a GPU too."""
    global _in_use
    before, _in_use = _in_use, kernels
    try:
        with exact_on_gpu():
            yield
    finally:
        _in_use = before


def graphs() -> bool:
    """Whether training captures its steps as CUDA graphs."""
    return _in_use == "graphs"


def choice(accelerator: str) -> Kernels:
    """The meaning of `kernels=auto` on an accelerator."""
    if accelerator == "cuda":
        return "graphs"
    return "compiled" if accelerator == "cpu" and load()[0] is not None else "torch"


def compiled(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether compiled kernels are used on a device for a dtype."""
    if _in_use == "torch" or device.type != "cpu" or dtype not in SUFFIX:
        return False
    library, _ = load()
    return library is not None and hasattr(library, f"lstm_forward_{SUFFIX[dtype]}")


@cache
def load() -> tuple[ctypes.CDLL | None, str]:
    """The library and its path, or None and the reason why there is none."""
    openmp = _openmp()
    if sys.platform != "linux" or openmp is None:
        return None, "PyTorch does not thread with GNU OpenMP here"
    compiler = os.environ.get("CC") or shutil.which("gcc")
    if compiler is None:
        return None, "no gcc on the PATH"
    sources = sorted(NATIVE.iterdir())
    processor = Path("/proc/cpuinfo").read_text(encoding="utf-8").partition("\n\n")[0]
    abilities = [line for line in processor.splitlines() if line.startswith(("flags", "model"))]
    try:
        version = _run(compiler, "--version")
        key = hashlib.sha256(repr([version, FLAGS, abilities, openmp]).encode())
        for source in sources:
            key.update(source.read_bytes())
        library = _cache_directory() / f"kernels-{key.hexdigest()[:16]}.so"
        if not library.exists():
            _build(compiler, openmp, library)
        return ctypes.CDLL(str(library)), str(library)
    except subprocess.CalledProcessError as error:
        lines = error.stderr.strip().splitlines() or [str(error)]
        return None, f"{compiler} failed: {next((x for x in lines if 'error' in x), lines[-1])}"
    except (OSError, subprocess.TimeoutExpired) as error:
        return None, str(error)


def _openmp() -> Path | None:
    """The path of the OpenMP library that PyTorch has loaded: a second one would compete with it
    for the cores. Other packages, such as sentencepiece, bring and load their own."""
    maps = Path("/proc/self/maps")
    lines = maps.read_text(encoding="utf-8").splitlines() if maps.exists() else []
    paths = {f"/{line.partition('/')[2]}" for line in lines if "libgomp" in line}
    beside = str(Path(torch.__file__).parent)
    own = [path for path in paths if path.startswith(beside)] or list(paths)
    return Path(own[0]) if len(own) == 1 else None


def _cache_directory() -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    try:
        directory = cache.expanduser() / "lmkit"  # raises RuntimeError for a user without a home
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            return directory
    except (OSError, RuntimeError):
        directory = Path(tempfile.mkdtemp(prefix="lmkit-"))
        atexit.register(shutil.rmtree, directory, ignore_errors=True)
        return directory


def _build(compiler: str, openmp: Path, library: Path) -> None:
    """Compile in a temporary directory and rename, as several processes may do so at once."""
    with tempfile.TemporaryDirectory(dir=library.parent) as scratch:
        compiled, linked = Path(scratch, "kernels.o"), Path(scratch, "kernels.so")
        _run(compiler, *FLAGS, "-c", "-o", str(compiled), str(NATIVE / "kernels.c"))
        _run(compiler, "-shared", "-o", str(linked), str(compiled), str(openmp), "-lm")
        linked.replace(library)


def _run(*command: str) -> str:
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
    return done.stdout


def call(name: str, dtype: torch.dtype, *arguments: Tensor | int | float | None) -> None:
    """Call the C function `name` for a dtype; tensors are contiguous, integers become long."""
    library, _ = load()
    passed: list[object] = [ctypes.c_int(torch.get_num_threads())]
    for argument in arguments:
        if argument is None:
            passed.append(None)
        elif isinstance(argument, Tensor):
            assert argument.is_contiguous(), name
            passed.append(ctypes.c_void_p(argument.data_ptr()))
        elif isinstance(argument, int):
            passed.append(ctypes.c_long(argument))
        else:
            passed.append(ctypes.c_float(argument))
    getattr(library, f"{name}_{SUFFIX[dtype]}")(*passed)


def padded(size: int, multiple: int = UNITS) -> int:
    """The next multiple, as which a size is laid out in memory."""
    return -(-size // multiple) * multiple
