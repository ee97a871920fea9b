"""Compiled kernels of the recurrent hot path on the CPU, and whether they are to be had.

The C of `native/` is built for this machine at the first use, in about two seconds, and kept in
the user's cache directory. Where there is no compiler everything works through PyTorch's own
operators, to rounding with the same numbers.
"""

from __future__ import annotations

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

Kernels = Literal["auto", "compiled", "torch"]

NATIVE = Path(__file__).with_name("native")
FLAGS = ("-O3", "-march=native", "-fPIC", "-fopenmp", "-std=gnu11")
UNITS = 16  # hidden units and inputs are padded to a multiple of this
SUFFIX = {torch.float32: "f32", torch.bfloat16: "bf16"}

_enabled = True


@contextmanager
def use(kernels: Kernels) -> Iterator[None]:
    """Within it `torch` leaves the compiled kernels alone; else they are taken if there."""
    global _enabled
    before, _enabled = _enabled, kernels != "torch"
    try:
        yield
    finally:
        _enabled = before


def choice(accelerator: str) -> Kernels:
    """What `kernels=auto` means on an accelerator."""
    return "compiled" if accelerator == "cpu" and load()[0] is not None else "torch"


def compiled(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether compiled kernels compute there, in that type."""
    if not _enabled or device.type != "cpu" or dtype not in SUFFIX:
        return False
    library, _ = load()
    return library is not None and hasattr(library, f"lstm_forward_{SUFFIX[dtype]}")


@cache
def load() -> tuple[ctypes.CDLL | None, str]:
    """The library and where it is, or None and why not."""
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
        return None, f"{compiler} failed: {error.stderr.strip().splitlines()[-1:]}"
    except (OSError, subprocess.TimeoutExpired) as error:
        return None, str(error)


def _openmp() -> Path | None:
    """The OpenMP library that PyTorch has loaded: a second one would fight it for the cores."""
    maps = Path("/proc/self/maps")
    lines = maps.read_text(encoding="utf-8").splitlines() if maps.exists() else []
    paths = {line.partition("/")[2] for line in lines if "libgomp" in line}
    return Path("/", *paths) if len(paths) == 1 else None


def _cache_directory() -> Path:
    directory = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lmkit"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            return directory
    except OSError:
        return Path(tempfile.mkdtemp(prefix="lmkit-"))


def _build(compiler: str, openmp: Path, library: Path) -> None:
    """Compile beside the target and rename: several processes may do so at once."""
    with tempfile.TemporaryDirectory(dir=library.parent) as scratch:
        compiled, linked = Path(scratch, "kernels.o"), Path(scratch, "kernels.so")
        _run(compiler, *FLAGS, "-c", "-o", str(compiled), str(NATIVE / "kernels.c"))
        _run(compiler, "-shared", "-o", str(linked), str(compiled), str(openmp), "-lm")
        linked.replace(library)


def _run(*command: str) -> str:
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
    return done.stdout


def _call(name: str, dtype: torch.dtype, *arguments: Tensor | int | float | None) -> None:
    """The function of that element type; tensors are contiguous, and integers are C's long."""
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
    return -(-size // multiple) * multiple


def pack_gates(weight_ih: Tensor, weight_hh: Tensor, dtype: torch.dtype) -> Tensor:
    """float32 (4 * hidden_size, n) and (4 * hidden_size, hidden_size) -> the panels that
    `lstm_forward` multiplies with."""
    hidden_size = weight_hh.shape[1]
    width = padded(weight_ih.shape[1]) + padded(hidden_size)
    panels = weight_hh.new_empty(4 * padded(hidden_size) * width, dtype=dtype)
    pack = 4 // panels.element_size()  # elements to a word
    first = 0
    for weight in (weight_ih, weight_hh):
        size = weight.shape[1]
        _call("pack_gates", dtype, hidden_size, size, first, width // pack, weight, panels)
        first = padded(size) // pack
    return panels


def pack_columns(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """weight float32 (4 * hidden_size, hidden_size) -> the panels of `lstm_backward`."""
    rows, hidden_size = weight.shape
    panels = weight.new_empty(rows * padded(hidden_size, 2 * UNITS), dtype=dtype)
    _call("pack_columns", dtype, hidden_size, weight, panels)
    return panels


def lstm_forward(
    rows: Tensor,
    resets: Tensor,
    weight: Tensor,
    bias: Tensor,
    cell: Tensor,
    cells: Tensor,
    gates: Tensor | None,
) -> None:
    """rows (time + 1, lanes, padded input size + padded hidden size) have the inputs, and the
    first hidden state; resets bool (time, lanes), weight as `pack_gates` gives it, bias float32
    (panels, 4, 16), cell float32 (lanes, padded hidden size), the state -> the other hidden
    states in rows, cells (time + 1, lanes, padded), whose first is there, and gates (time,
    lanes, 4 * padded), unless None; cell becomes that after the window."""
    time, lanes = resets.shape
    sizes = (time, lanes, rows.shape[2] - cell.shape[1], cell.shape[1] // UNITS)
    _call("lstm_forward", rows.dtype, *sizes, rows, weight, bias, resets, cell, cells, gates)


def lstm_backward(
    weight_hh: Tensor,
    resets: Tensor,
    cells: Tensor,
    gates: Tensor,
    grad_hiddens: Tensor,
    grad_hidden: Tensor | None,
    grad_cell: Tensor,
) -> tuple[Tensor, Tensor]:
    """weight_hh as `pack_columns` gives it; resets, cells and gates of `lstm_forward`; the
    gradients of the outputs (time, lanes, hidden_size), of the last hidden state, float32
    (lanes, hidden_size) or None, and of the last cell, float32 (lanes, padded hidden size)
    -> those of the gates (time, lanes, 4 * hidden_size) and of the bias, float32
    (4 * hidden_size); grad_cell becomes the first cell's."""
    time, lanes, hidden_size = grad_hiddens.shape
    grad_gates = grad_hiddens.new_empty(time, lanes, 4 * hidden_size)
    sums = grad_cell.new_zeros(torch.get_num_threads(), 4, grad_cell.shape[1])
    saved = (weight_hh, resets, cells, gates)
    grads = (grad_hiddens, grad_hidden, grad_cell, grad_gates, sums)
    _call("lstm_backward", grad_hiddens.dtype, time, lanes, hidden_size, *saved, *grads)
    return grad_gates, sums.sum(0)[:, :hidden_size].flatten()


def cross_entropy(
    logits: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    weight: Tensor,
    *,
    grad: bool,
    grad_bias: Tensor | None = None,
) -> Tensor:
    """logits (rows, vocabulary), float32 bias (vocabulary), int64 targets (rows), float32
    weight (rows) -> float32 nll (rows), 0 where weight is.

    With `grad` the logits become the gradient of weight * nll by them, and grad_bias
    (vocabulary) has that by the bias added.
    """
    rows, size = logits.shape
    lowest, highest = (int(extreme) for extreme in targets.aminmax())
    if lowest < 0 or highest >= size:  # C would write there
        raise IndexError(f"targets from {lowest} to {highest}: there are {size} logits")
    nll = weight.new_empty(rows)
    scratch = weight.new_empty(torch.get_num_threads(), 2, padded(size))
    data = (logits, bias, targets, weight, nll, scratch)
    _call("cross_entropy", logits.dtype, rows, size, *data, int(grad), grad_bias)
    return nll


def dropout(tensor: Tensor, key: tuple[int, int], threshold: int, scale: float) -> Tensor:
    """`scale` times the elements for which the hash of key and place reaches threshold."""
    kept = torch.empty_like(tensor)
    _call("dropout", tensor.dtype, tensor.numel(), tensor, kept, *key, threshold, scale)
    return kept
