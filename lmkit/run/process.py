"""`lmkit` in a process of its own: how it is started, and what it said when it failed."""

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
    """A command of lmkit that ends when this process does; options: those of Popen."""
    return subprocess.Popen(
        [sys.executable, "-m", "lmkit", *arguments],
        stdin=subprocess.DEVNULL,
        env={**environment, FOLLOWS: str(os.getpid())},
        **options,
    )


def told_error(output: str) -> str:
    """The sentence that a command ended with, out of what it printed; "" where there is none."""
    _, found, sentence = f"\n{output}".rpartition("\nerror: ")
    return sentence.strip() if found else ""
