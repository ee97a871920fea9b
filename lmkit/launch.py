"""A checked config to a run that has ended: `lmkit train` and `lmkit resume`."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from lmkit import hardware
from lmkit.checkpoint_io import latest_checkpoint
from lmkit.errors import UserError, exit_code
from lmkit.loggers import grouped
from lmkit.processes import Launched, broadcast, launched, meet
from lmkit.redaction import redact
from lmkit.run import Run
from lmkit.signals import Stopped
from lmkit.trained import TrainedModel
from lmkit.training import work
from lmkit.wandb_logger import unsynced
from lmkit.workers import log_to, work_in_processes

Work = Callable[[Run, dict[str, Any]], None]
SAMPLE_TOKENS = 60


def train(config: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """Train a model, test its best checkpoint, and show a sample of its text.

    With the run_id of a run that has been stopped, goes on with that run. With -m, Hydra's
    multirun, a run for each combination of values: -m optimizer.lr=1e-3,1e-2 model=lstm,gru.
    """
    config = grouped(config)
    place = (config["outputs"], config["name"], config["run_id"])
    return _start(lambda: Run.create(*place, config, overrides, sys.argv), config)


def resume(run: Run, config: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """Go on with a run from its newest checkpoint; length, devices and logging may change."""

    def start() -> Run:
        run.start(config, overrides, sys.argv)
        return run

    return _start(start, config)


def _start(make: Callable[[], Run], config: dict[str, Any]) -> dict[str, Any]:
    """Do the work of a run that `make` starts, in as many processes as it is to have."""
    if place := launched():
        return _join(make, config, place)
    if hardware.num_processes(config["trainer"]) > 1:
        return _hold(make(), config, work_in_processes)
    return _hold(make(), config, _work_alone)


def _work_alone(run: Run, config: dict[str, Any]) -> None:
    work(run, config, latest_checkpoint(run.path / "checkpoints"))


def _join(make: Callable[[], Run], config: dict[str, Any], place: Launched) -> dict[str, Any]:
    """As one of the processes that torchrun or SLURM has started; rank 0 holds the run."""
    meet(place, config["trainer"]["accelerator"])
    told: tuple[Path, Path | None] | str
    if place.rank == 0:
        try:
            run = make()
            told = (run.path, latest_checkpoint(run.path / "checkpoints"))
        except UserError as error:
            told = str(error)
    told = broadcast(told if place.rank == 0 else None)
    if isinstance(told, str):
        if place.rank:
            sys.exit(2)  # rank 0 says why
        raise UserError(told)
    path, newest = told
    log_to(path, place.rank)
    try:
        if place.rank == 0:
            return _hold(run, config, lambda run, config: work(run, config, newest))
        work(Run(path), config, newest)
    except Stopped as stopped:
        if place.by == "slurm":
            if stopped.signum == signal.SIGUSR1 and place.rank == 0:
                subprocess.run(["scontrol", "requeue", os.environ["SLURM_JOB_ID"]], check=True)
            raise
        # torchrun would take another code for a failure, and start again.
    return {}


def _hold(run: Run, config: dict[str, Any], work: Work) -> dict[str, Any]:
    """Do the work of a started run and write down how it ended."""
    print(f"run {run.name}/{run.id} in {run.path}", file=sys.stderr)
    try:
        work(run, config)
    except Stopped as stopped:
        run.write_status("stopped", stopped.name, stopped.exit_code)
        print(f"stopped by {stopped.name}; to go on: {_command('resume', run)}", file=sys.stderr)
        raise
    except BaseException as error:
        reason = redact(str(error)).partition("\n")[0]
        run.write_status("failed", f"{type(error).__name__}: {reason}", exit_code(error))
        raise
    else:
        run.write_status("finished", exit_code=0)
    finally:
        run.release()
        _say_how_to_sync(run)
    summary = run.read("summary.json")
    if summary:
        _report(run, config, summary)
    return {"run": str(run.path), **summary}


def _report(run: Run, config: dict[str, Any], summary: dict[str, Any]) -> None:
    """Print what the run came to, a sample of its text, and how to look at it."""
    console = Console()
    table = Table(box=None, show_header=False)
    for key, form in (
        ("best/val/perplexity", "{:,.2f}"),
        ("test/nll", "{:.4f} nats per token"),
        ("test/perplexity", "{:,.2f}"),
        ("test/bits_per_byte", "{:.3f}"),
        ("tokens_per_second", "{:,.0f} in training"),
        ("num_parameters", "{:,}"),
        ("seconds", "{:,.0f}"),
    ):
        if summary.get(key) is not None:
            table.add_row(key.replace("_", " "), form.format(summary[key]))
    (text,) = TrainedModel.load(run, config).generate(num_tokens=SAMPLE_TOKENS)
    console.print(table)
    console.print(Panel(Text(text.strip()), title="a sample of its text", title_align="left"))
    prompt = config["callbacks"].get("samples", {}).get("prompt")
    start = f" prompt={shlex.quote(prompt)}" if prompt else ""
    console.print(Text(f"more text:     {_command('generate', run)}{start}"))
    console.print(Text(f"the dashboard: lmkit dashboard{outputs_argument(run)}"))


def _say_how_to_sync(run: Run) -> None:
    """Name what wandb has kept offline, also of a run that has failed or was stopped."""
    if parts := unsynced(run.path):
        here = Path.cwd()
        near = [part.relative_to(here) if part.is_relative_to(here) else part for part in parts]
        print(f"to wandb: {shlex.join(['wandb', 'sync', *map(str, near)])}", file=sys.stderr)


def _command(name: str, run: Run) -> str:
    return f"lmkit {name} {run.id}{outputs_argument(run)}"


def outputs_argument(run: Run) -> str:
    """` outputs=DIR` where a command would look elsewhere for the run."""
    outputs = run.path.parents[1]
    return "" if outputs == Path("outputs").absolute() else f" outputs={outputs}"
