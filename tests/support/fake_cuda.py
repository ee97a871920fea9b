"""A CUDA card of fake tensors, for machines without one, in a process of its own."""

import json
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

HERE = Path(__file__).parent
# PyTorch looks only once, when it is imported, whether there is CUDA.
START = """
import ctypes, runpy, sys
ctypes.CDLL(sys.argv[1])
sys.path.insert(0, sys.argv[2])
runpy.run_module("on_fake_cuda", run_name="__main__")
"""


def build(compiler: str, library: Path) -> None:
    """Compile what PyTorch takes for its CUDA library, in about three seconds."""
    spec = find_spec("torch")
    assert spec is not None
    assert spec.origin is not None
    torch = Path(spec.origin).parent
    flags = ["-O0", "-std=c++20", "-shared", "-fPIC", f"-I{torch / 'include'}"]
    linked = [f"-L{torch / 'lib'}", f"-Wl,-rpath,{torch / 'lib'}", "-ltorch_cpu", "-lc10"]
    command = [compiler, *flags, "-o", str(library), str(HERE / "fake_cuda.cpp"), *linked]
    subprocess.run(command, check=True)


class FakeCuda:
    """The process of on_fake_cuda.py."""

    def __init__(self, library: Path) -> None:
        self.log = library.with_suffix(".log")
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", START, str(library), str(HERE)],
                cwd=library.parent,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )

    def error(self, arguments: Sequence[str], fault: str | None = None) -> str | None:
        """What goes wrong on the card with these arguments of `lmkit train`, if anything does."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps([list(arguments), fault]), file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        assert answer, self.log.read_text()
        error: str | None = json.loads(answer)
        return error

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()
