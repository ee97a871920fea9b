"""`lmkit train` and `lmkit resume`: train a run, and show its results."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from lmkit.config.loggers import grouped
from lmkit.inference import TrainedModel
from lmkit.run import Run, no_checkpoint, no_end
from lmkit.tokenizer.base import FILE
from lmkit.training.launch import launch

SAMPLE_TOKENS = 60


def train(config: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """Train a model, test its best checkpoint, and show a sample of its text.

        lmkit train
        lmkit train model=gru model.hidden_size=400 model.tie_weights=false optimizer.lr=1e-3
        lmkit train data=files data.path=texts data.unit=paragraph name=mine
        lmkit train -m model=lstm,gru optimizer.lr=1e-3,2e-3
        lmkit train init=latest data=files data.path=texts name=adapted

    With the run_id of a run that has been stopped, goes on with that run. With init=RUN, begins
    with the model, weights and tokenizer of another (init_checkpoint=, init_vocabulary=new). With
    -m, Hydra's multirun, a run for each combination of values.
    """
    run = Run.named(config["outputs"], config["name"], config["run_id"])
    return _trained(run, grouped(config), overrides)


def resume(
    run: Annotated[Run, no_end], config: dict[str, Any], overrides: list[str]
) -> dict[str, Any]:
    """Go on with a run from its newest checkpoint; length, devices and logging may change.

        lmkit resume latest
        lmkit resume latest trainer.max_epochs=20

    config: that of the run; trainer.max_epochs and other lengths, trainer.devices,
    trainer.precision, kernels, threads, restarts, logger, callbacks.samples, callbacks.watchdog and
    callbacks.early_stopping may change, paths where the same text lies elsewhere, and once the run
    has diverged optimizer.lr and trainer.gradient_clip_val
    """
    return _trained(run, config, overrides)


def _trained(run: Run, config: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """Train a run, and print its summary if this process has one."""
    config = _with_own_tokenizer(run, config)
    summary = launch(run, config, overrides)
    if summary.keys() > {"run"}:
        show(run, config, summary)
    return summary


def _with_own_tokenizer(run: Run, config: dict[str, Any]) -> dict[str, Any]:
    """The config; where its saved tokenizer is no longer there, a run that resumes has a copy."""
    path = config["tokenizer"].get("path")
    if path is None or Path(path).exists() or not (run.path / FILE).is_file():
        return config
    return {**config, "tokenizer": {"_target_": "lmkit.tokenizer.Stored", "path": str(run.path)}}


def show(run: Run, config: dict[str, Any], summary: dict[str, Any]) -> None:
    """Print the results of a run, a sample of its text, and commands to look at it."""
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
    if reason := no_checkpoint(run):
        console.print(table)
        why = "none is written" if summary.get("tokens") else "not one update was made"
        print(f"{run.name}/{run.id} {reason}: {why}", file=sys.stderr)
        return
    (text,) = TrainedModel.load(run, config).generate(num_tokens=SAMPLE_TOKENS)
    console.print(table)
    console.print(Panel(Text(text.strip()), title="a sample of its text", title_align="left"))
    prompt = config["callbacks"].get("samples", {}).get("prompt")
    start = f" prompt={shlex.quote(prompt)}" if prompt else ""
    # Each command stays on one line even on a narrow terminal, so that it can be copied.
    console.print(Text(f"more text:     {run.command('generate')}{start}"), soft_wrap=True)
    console.print(Text(f"the dashboard: lmkit dashboard{run.outputs_argument()}"), soft_wrap=True)
