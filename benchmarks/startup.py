"""How long commands take to start: wall seconds of processes, turn about.

    python benchmarks/startup.py [rounds=5]

What Python and its libraries take by themselves comes first. The mistake is found before anything
is built; the training is of five windows, on data prepared in the round that warms up.
"""

from __future__ import annotations

import shlex
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass

from measure import SCRATCH, console, print_header, settings
from rich.table import Table

PROGRAMS = {"python": [sys.executable], "lmkit": [sys.executable, "-m", "lmkit"]}

# Each with its exit code.
COMMANDS = {
    "python -c pass": 0,
    "python -c 'import torch'": 0,
    "python -c 'import torch, lightning.pytorch'": 0,
    "lmkit --help": 0,
    "lmkit list": 0,
    "lmkit doctor probe=false": 0,
    "lmkit train trainer.precision=bf16_mixed": 2,
    "lmkit train debug=fast_dev_run": 0,
}


@dataclass
class Settings:
    rounds: int = 5


def seconds(command: str) -> float:
    program, *arguments = shlex.split(command)
    command_line = [*PROGRAMS[program], *arguments]
    begin = time.perf_counter()
    done = subprocess.run(command_line, capture_output=True, text=True, cwd=SCRATCH)
    taken = time.perf_counter() - begin
    if done.returncode != COMMANDS[command]:
        raise SystemExit(f"{command} ended with {done.returncode}: {done.stderr}")
    return taken


def main() -> None:
    given = settings(Settings)
    print_header()
    SCRATCH.mkdir(exist_ok=True)
    rounds = [[seconds(command) for command in COMMANDS] for _ in range(given.rounds + 1)]
    table = Table(title=f"start-up (median of {given.rounds} rounds)", title_justify="left")
    table.add_column("")
    table.add_column("seconds", justify="right")
    table.add_column("lowest to highest", justify="right")
    for command, taken in zip(COMMANDS, zip(*rounds[1:], strict=True), strict=True):
        low_to_high = f"{min(taken):.2f} to {max(taken):.2f}"
        table.add_row(command, f"{statistics.median(taken):.2f}", low_to_high)
    console.print(table)


if __name__ == "__main__":
    main()
