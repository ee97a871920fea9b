"""One call of a part of benchmarks/gpu.sh: its time, its commands and the JSON of the figures."""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from measure import processor

from lmkit.system.files import write_atomically

ROOT = Path(__file__).resolve().parents[1]
RESERVE = 15  # seconds before the end of a call, in which a run that is stopped saves its state


@dataclass
class Settings:
    path: str = ""
    json: str = "build/gpu/gpu.json"
    work: str = "build/gpu"
    seconds: int = 600
    again: bool = False
    accelerator: str = "cuda"
    shapes: str = "200,650_tied,awd,1500_tied"
    precisions: str = "bf16-mixed,32-true"
    steps: int = 200
    rounds: int = 5
    curve_seconds: int = 600
    recipe: str = "pytorch_examples_200_tied"


class TooLongError(Exception):
    """A command would not end within this call."""


class Session:
    """One call of a part: its time, its directory and the JSON that its figures are added to."""

    def __init__(self, given: Settings) -> None:
        self.given = given
        self.end = time.monotonic() + given.seconds
        self.work = (ROOT / given.work).resolve()
        self.work.mkdir(parents=True, exist_ok=True)
        self.file = ROOT / given.json
        self.document: dict[str, Any] = {"machine": {}, "figures": {}}
        if self.file.exists():
            self.document = json.loads(self.file.read_text(encoding="utf-8"))
        self.document["machine"] = machine(given.accelerator)

    def left(self) -> float:
        return self.end - time.monotonic()

    def has(self, name: str) -> bool:
        """Whether a figure is there, from a command that has succeeded."""
        figure = self.document["figures"].get(name)
        return bool(figure and figure["done"]) and not self.given.again

    def run(self, command: list[str], *, cwd: Path | None = None) -> str:
        """What a command prints; raises TooLongError, or CalledProcessError with its output and
        its messages."""
        print(f"$ {shlex.join(command)}", flush=True)
        if self.left() <= RESERVE:
            raise TooLongError
        process = subprocess.Popen(
            command, cwd=cwd or ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        try:
            out, messages = process.communicate(timeout=self.left() - RESERVE)
        except subprocess.TimeoutExpired as error:
            process.kill()
            process.communicate()
            raise TooLongError from error
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, command, out + messages)
        return out

    def figure(self, name: str, commands: list[list[str]], values: Callable[[], Any]) -> bool:
        """Add a figure, with the commands that it is of, if it is still missing; false: it is not
        done."""
        if self.has(name):
            print(f"{name}: is there already", flush=True)
            return True
        began = time.monotonic()
        entry: dict[str, Any] = {"commands": [shlex.join(command) for command in commands]}
        try:
            entry |= {"done": True, "values": values()}
        except TooLongError:
            entry |= {"done": False, "error": "not within this call; call again"}
        except subprocess.CalledProcessError as error:
            entry |= {"done": False, "error": f"exit code {error.returncode}"}
            entry["output"] = str(error.output)[-4000:]
        except AssertionError as error:
            entry |= {"done": False, "error": f"not the same: {error}"}
        entry["seconds"] = round(time.monotonic() - began, 1)
        entry["date"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        entry["machine"] = self.document["machine"]
        self.document["figures"][name] = entry
        self.save()
        outcome = "done" if entry["done"] else f"{entry['error']}\n{entry.get('output', '')}"
        print(f"{name}: {outcome} ({entry['seconds']} s)", flush=True)
        return bool(entry["done"])

    def save(self) -> None:
        text = json.dumps(self.document, indent=1).encode()
        self.file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self.file, text)
        if out := os.environ.get("OUT"):
            Path(out).mkdir(parents=True, exist_ok=True)
            write_atomically(Path(out, "gpu.json"), text)


def machine(accelerator: str) -> dict[str, Any]:
    """The card, the processor and the versions."""
    found: dict[str, Any] = {
        "accelerator": accelerator,
        "processor": processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    if torch.cuda.is_available():
        card = torch.cuda.get_device_properties(0)
        found |= {
            "card": card.name,
            "card_bytes": card.total_memory,
            "card_capability": f"{card.major}.{card.minor}",
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }
        with suppress(OSError, subprocess.CalledProcessError):
            query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
            found["driver"] = subprocess.check_output(query, text=True).split()[0]
    return found
