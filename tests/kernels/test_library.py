"""Building the compiled kernels, and what happens where that cannot be."""

import os
import subprocess
import sys
from pathlib import Path

from compiled import needs_kernels

from lmkit import kernels

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


def test_there_is_one_openmp_library_in_the_process():
    """A second one would have threads of its own, which fight PyTorch's for the cores."""
    kernels.load()
    lines = Path("/proc/self/maps").read_text().splitlines()
    assert len({line.partition("/")[2] for line in lines if "libgomp" in line}) == 1
