"""A checked config to a run that has ended: `lmkit train` and `lmkit resume`."""

from __future__ import annotations

import logging
import shlex
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from lmkit import hardware
from lmkit.checkpoint_io import latest_checkpoint
from lmkit.errors import UserError
from lmkit.run import Run
from lmkit.signals import Stopped
from lmkit.trained import TrainedModel
from lmkit.training import make_data, work

SAMPLE_TOKENS = 60


def train(config: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """Train a model, test its best checkpoint, and show a sample of its text.

    With the run_id of a run that has been stopped, goes on with that run.
    """
    place = (config["outputs"], config["name"], config["run_id"])
    return _hold(Run.create(*place, config, overrides, sys.argv), config)


def resume(run: Run, config: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """Go on with a run from its newest checkpoint; length, devices and logging may change."""
    run.start(config, overrides, sys.argv)
    return _hold(run, config)


def _hold(run: Run, config: dict[str, Any]) -> dict[str, Any]:
    """Do the work of a started run and write down how it ended."""
    print(f"run {run.name}/{run.id} in {run.path}", file=sys.stderr)
    try:
        newest = latest_checkpoint(run.path / "checkpoints")
        if hardware.num_processes(config["trainer"]) > 1:
            _work_in_processes(run, config, newest)
        else:
            work(run, config, newest)
    except Stopped as stopped:
        run.write_status("stopped", stopped.name, stopped.exit_code)
        print(f"stopped by {stopped.name}; to go on: {_command('resume', run)}", file=sys.stderr)
        raise
    except BaseException as error:
        code = 2 if isinstance(error, UserError) else 1
        run.write_status("failed", f"{type(error).__name__}: {error}", code)
        raise
    else:
        run.write_status("finished", exit_code=0)
    finally:
        run.release()
    summary = run.read("summary.json")
    if summary:
        _report(run, config, summary)
    return {"run": str(run.path), **summary}


def _work_in_processes(run: Run, config: dict[str, Any], newest: Path | None) -> None:
    """Work in one process a device, under torch's elastic agent, over data prepared here.

    Lightning's own launcher would execute the command line once more in every process.
    """
    assert make_data(config).prepared
    launch = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=hardware.num_processes(config["trainer"]),
        run_id=run.id,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        monitor_interval=0.2,
    )
    try:
        elastic_launch(launch, _worker)(run.path, config, newest)
    except SignalException as stopped:
        raise Stopped(stopped.sigval) from None


def _worker(path: Path, config: dict[str, Any], newest: Path | None) -> None:
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    work(Run(path), config, newest)


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
    console.print(Text(f"the dashboard: lmkit dashboard{_outputs(run)}"))


def _command(name: str, run: Run) -> str:
    return f"lmkit {name} {run.id}{_outputs(run)}"


def _outputs(run: Run) -> str:
    """`outputs=` where lmkit would look elsewhere."""
    outputs = run.path.parents[1]
    return "" if outputs == Path("outputs").absolute() else f" outputs={outputs}"
