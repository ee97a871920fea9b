"""Starts `lmkit` in a process of its own, and reads its error out of what it printed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from lmkit.system.signals import FOLLOWS


def start(
    arguments: Sequence[str], environment: Mapping[str, str] = os.environ, **options: Any
) -> subprocess.Popen[Any]:
    """Start a command of lmkit, which ends when this process does; options: arguments of Popen."""
    return subprocess.Popen(
        [sys.executable, "-m", "lmkit", *arguments],
        stdin=subprocess.DEVNULL,
        env={**environment, FOLLOWS: str(os.getpid())},
        **options,
    )


def told_error(output: str) -> str:
    """The error message at the end of a command's output, "" if there is none."""
    _, marker, sentence = f"\n{output}".rpartition("\nerror: ")
    return sentence.strip() if marker else ""
