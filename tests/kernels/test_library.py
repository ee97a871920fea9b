"""Building the compiled kernels, and what happens where that cannot be."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from compiled import needs_kernels

pytestmark = needs_kernels


def test_without_a_compiler_it_says_so_and_goes_on(monkeypatch, tmp_path):
    code = (
        "from lmkit import kernels; import torch; print(kernels.load());"
        "print(kernels.compiled(torch.device('cpu'), torch.float32), kernels.choice('cpu'))"
    )
    failing = tmp_path / "cc"
    failing.write_text("#!/bin/sh\n[ $1 = --version ] && exit 0\necho no such flag >&2\nexit 1\n")
    failing.chmod(0o755)
    for compiler, reason in (("/nonexistent", "No such file"), (str(failing), "no such flag")):
        environment = {**os.environ, "CC": compiler, "XDG_CACHE_HOME": str(tmp_path / "cache")}
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            env=environment,
            check=True,
        )
        assert reason in done.stdout
        assert done.stdout.endswith("False torch\n")
        assert not list(Path(tmp_path).glob("cache/lmkit/*"))


def test_the_library_is_built_once_also_by_processes_at_the_same_time(tmp_path):
    code = "from lmkit import kernels; print(kernels.load()[1])"
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    started = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment)
        for _ in range(3)
    ]
    paths = {process.communicate()[0] for process in started}
    assert len(paths) == 1
    (library,) = (tmp_path / "lmkit").iterdir()
    assert paths == {f"{library}\n".encode()}


def test_an_unwritable_cache_is_done_without(tmp_path):
    blocked = tmp_path / "file"
    blocked.touch()
    code = "from lmkit import kernels; print(kernels.load()[0] is not None)"
    environment = {**os.environ, "XDG_CACHE_HOME": str(blocked), "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
    )
    assert done.stdout == "True\n"


@pytest.mark.parametrize("other", [None, "sentencepiece"])
def test_pytorch_and_the_kernels_share_one_openmp_library(other):
    """A second one would have threads of its own, which fight PyTorch's for the cores; another
    package may have loaded one for itself."""
    if other:
        pytest.importorskip(other)
    code = f"""
import {other or "torch"}, torch
from lmkit.kernels import library
loaded, path = library.load()
assert loaded is not None, path
lines = open("/proc/self/maps", encoding="utf-8").read().splitlines()
paths = {{f"/{{line.partition('/')[2]}}" for line in lines if "libgomp" in line}}
assert len(paths) == {2 if other else 1}, paths
assert str(library._openmp()) in paths
torch.set_num_threads(3)
assert loaded.omp_get_max_threads() == 3
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
