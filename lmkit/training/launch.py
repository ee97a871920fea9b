"""Starts a run: in this process, in several, or as one that torchrun or SLURM has started."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from lmkit.assembly import make_data
from lmkit.errors import MachineError, ResultError, UserError, as_user_error, exit_code
from lmkit.inference.identity import check_own, check_text, warn_of_text
from lmkit.run import IMPORTED, Run
from lmkit.run.checkpoints import latest_checkpoint, newest_manifest, num_epochs_done
from lmkit.run.history import AFRESH, differences, last_changed
from lmkit.store import Prepared
from lmkit.system import hardware, threads
from lmkit.system.processes import Launched, launched
from lmkit.system.redaction import redact
from lmkit.system.regular_file import DamagedError
from lmkit.system.rendezvous import broadcast, gather, meet
from lmkit.system.signals import Stopped, follow_parent
from lmkit.training.counted import check_counted, is_counted
from lmkit.training.first_pace import first_pace
from lmkit.training.fit import work
from lmkit.training.initial import check_init
from lmkit.training.limits import check_limits
from lmkit.training.loggers.wandb import unsynced
from lmkit.training.workers import log_to, work_in_processes
from lmkit.windows import DataModule

Result = TypeVar("Result")


def launch(
    run: Run,
    config: dict[str, Any],
    overrides: list[str],
    prepared: Callable[[Prepared], None] = lambda prepared: None,
) -> dict[str, Any]:
    """Train a run in as many processes as its config asks for, and return its summary with `run`,
    its directory; all processes but the first return an empty one.

    The run is written only after its data is prepared: a mistake until then creates no run and
    leaves an existing one as it was. The first process calls `prepared` before it trains.
    """
    if started := launched():
        return _join(run, config, overrides, started, prepared)
    _check(run, config)
    data = _prepare(run, config)
    if _stays(run, config):
        return _summary(run)
    warn_of_text(run, data.prepared)
    prepared(data.prepared)
    if is_counted(config):
        check_counted(config, data, overrides)
        run.start(config, overrides, sys.argv)
        newest = latest_checkpoint(run.path / "checkpoints")
        return _hold(run, config, lambda: work(run, config, newest, data))
    if hardware.num_processes(config["trainer"]) > 1:
        run.start(config, overrides, sys.argv)
        return _hold(run, config, lambda: work_in_processes(run, config))
    with threads.use(None):  # `pace` sets the number, and may change it during training
        pace = first_pace(run, config, overrides, data)
        config = {**config, "threads": pace.threads.number}
        run.start(config, overrides, sys.argv)
        checkpoints = run.path / "checkpoints"

        def do() -> None:
            work(run, config, latest_checkpoint(checkpoints), data, pace)

        return _hold(run, config, do)


def _check(run: Run, config: dict[str, Any]) -> None:
    """Raise UserError if the run cannot be started, has come further already, or has checkpoints of
    another run."""
    if (run.path / IMPORTED).exists():
        raise UserError(
            f"{run.name}/{run.id} was imported: lmkit has no training of it to go on with"
        )
    newest: Path | None = None
    manifest: dict[str, Any] = {}
    if run.path.is_dir():  # `check` reports anything else in its way
        newest, manifest = newest_manifest(run.path / "checkpoints")
    if newest and not run.config():
        raise UserError(
            f"{run.path} has lost its config.yaml: put a sound copy back, or begin another run"
        )
    run.check(config)
    for path in (newest, run.path / "checkpoints" / "best.ckpt"):
        if path and path.is_file():
            check_own(run, path)
    if newest is None and run.read("summary.json").get("tokens"):
        raise UserError(
            f"{run.name}/{run.id} has ended and has no checkpoint to go on from: put its "
            "checkpoints back, or begin another run"
        )
    epochs, steps = (config["trainer"].get(key) for key in ("max_epochs", "max_steps"))
    for key, most, so_far in (
        ("max_epochs", epochs, num_epochs_done(manifest)),
        ("max_steps", steps, manifest.get("step", 0)),
    ):
        if most is not None and -1 < most < so_far:
            raise UserError(
                f"trainer.{key}={most} but the run has come further: {newest} has {so_far} "
                f"{key[4:]} behind it; give more, or begin another run"
            )


def _prepare(run: Run, config: dict[str, Any]) -> DataModule:
    """The prepared data; raises UserError if a run that resumes began with another text, if its
    trainer's limits or its schedule do not fit the text, or if it cannot begin as `init` says."""
    data = make_data(config)
    prepared = data.prepare()
    check_text(run, prepared)
    check_limits(config, data)
    if config.get("init") and not newest_manifest(run.path / "checkpoints")[1]:
        begins, started = check_init(config, prepared.tokenizer), launched()
        if started is None or started.rank == 0:
            print(begins, file=sys.stderr)
    return data


def _stays(run: Run, config: dict[str, Any]) -> bool:
    """Whether a run has finished and the config changes nothing that could change its result."""
    status = {}
    with suppress(DamagedError):  # `start` reports it, and writes the file anew
        status = run.status()
    if status.get("status") != "finished" or not run.before("summary.json"):
        return False
    if any(AFRESH.match(key) for key in differences(run.config(), config)):
        return False
    if is_counted(config):
        print(f"{run.name}/{run.id} has been counted and stays as it is", file=sys.stderr)
        return True
    first, *others = _ends(config)
    by = f" (or with more of {', '.join(others)}, whichever ended it)" if others else ""
    print(
        f"{run.name}/{run.id} has ended and stays as it is; to train longer: "
        f"{run.command('resume')} {first}=N{by}",
        file=sys.stderr,
    )
    return True


def _ends(config: Mapping[str, Any]) -> list[str]:
    """The config keys that may have ended a training."""
    keys = ("max_epochs", "max_steps", "max_time")
    limits = [f"trainer.{key}" for key in keys if config["trainer"].get(key) not in (None, -1)]
    stops = [key for key, node in config["callbacks"].items() if "patience" in node]
    return [*limits, *(f"callbacks.{key}.patience" for key in stops)]


def _join(
    run: Run,
    config: dict[str, Any],
    overrides: list[str],
    started: Launched,
    prepared: Callable[[Prepared], None],
) -> dict[str, Any]:
    """Train as one of the processes that torchrun or SLURM has started; rank 0 writes the run."""
    if started.by == "torchrun":
        follow_parent(os.getppid())
    meet(started, config["trainer"])
    newest = None

    def start() -> Path | None:
        run.start(config, overrides, sys.argv)
        return latest_checkpoint(run.path / "checkpoints")

    try:
        _agree(started, lambda: _check(run, config), alone=True)
        # All call this, and a lock lets one of them work: waiting for rank 0 would time out.
        data = _agree(started, lambda: _prepare(run, config))
        if broadcast(_agree(started, lambda: _stays(run, config), alone=True)):
            return {} if started.rank else _summary(run)
        if data and started.rank == 0:
            warn_of_text(run, data.prepared)
            prepared(data.prepared)
        newest = _agree(started, start, alone=True)
        path, newest = broadcast((run.path, newest))
        log_to(path, started.rank)
        if started.rank == 0:
            return _hold(run, config, lambda: work(run, config, newest, data))
        work(Run(path), config, newest, data)
    except Stopped as stopped:
        if started.by == "slurm":
            if stopped.signum == signal.SIGUSR1 and started.rank == 0:
                _requeue(run)
            raise
        # torchrun reads any exit code but 0 as a failure, and would start again.
    return {}


def _requeue(run: Run) -> None:
    """Ask SLURM to queue this job again, or print why that failed."""
    try:
        subprocess.run(["scontrol", "requeue", os.environ["SLURM_JOB_ID"]], check=True)
    except (KeyError, OSError, subprocess.CalledProcessError) as error:
        what = f"the job is not queued again ({type(error).__name__}: {error})"
        print(f"{what}; to go on: {run.command('resume')}", file=sys.stderr)


def _agree(started: Launched, do: Callable[[], Result], *, alone: bool = False) -> Result | None:
    """Call `do` in every process, or with `alone` in rank 0, and return its result. A UserError in
    any process ends all of them, and rank 0 reports it."""
    mistake = result = None
    if started.rank == 0 or not alone:
        try:
            result = do()
        except UserError as error:
            mistake = str(error)
    if mistakes := list(filter(None, gather(mistake))):
        if started.rank:
            sys.exit(2)
        raise UserError(mistakes[0])
    return result


def _hold(run: Run, config: dict[str, Any], do: Callable[[], None]) -> dict[str, Any]:
    """Do the work of a started run, and write how it ended into its status."""
    print(f"{_begins(run)}{run.name}/{run.id} in {run.path}{_changes(run)}", file=sys.stderr)
    try:
        do()
    except Stopped as stopped:
        run.write_status("stopped", stopped.name, stopped.exit_code)
        print(f"stopped by {stopped.name}; to go on: {run.command('resume')}", file=sys.stderr)
        raise
    except SystemExit as error:  # of code that is not lmkit's
        reason = f"sys.exit({error.code!r}) ended the training before its end"
        run.write_status("failed", reason, 1)
        raise ResultError(f"{run.name}/{run.id}: {reason}", None) from error
    except BaseException as error:
        shown = as_user_error(error) or error
        reason = redact(str(shown)).partition("\n")[0]
        run.write_status("failed", f"{type(shown).__name__}: {reason}", exit_code(shown))
        if isinstance(shown, MachineError):
            raise MachineError(f"{shown}, then go on with: {run.command('resume')}") from error
        raise
    else:
        run.write_status("finished", exit_code=0)
    finally:
        run.release()
        _say_how_to_sync(run)
    return _summary(run)


def _changes(run: Run) -> str:
    """The config keys that a resume has changed, as a text to print."""
    record: Any = run.read("overrides.yaml") if run.continued else []
    changes = [
        f"{key}={now} ({then} before)"
        for key, (then, now) in last_changed(record).items()
        if key not in ("threads", "outputs", "run_id", "name")
    ]
    return f", with {', '.join(changes)}" if changes else ""


def _summary(run: Run) -> dict[str, Any]:
    """The summary of a finished run."""
    return {"run": str(run.path), **run.read("summary.json")}


def _begins(run: Run) -> str:
    """The text before a run's name: `run `, or the step from which it resumes; epochs count from 1,
    as on the progress bar."""
    _, manifest = newest_manifest(run.path / "checkpoints")
    if not manifest:
        return "run "
    return f"going on from step {manifest['step']:,} (epoch {manifest['epoch'] + 1}) of "


def _say_how_to_sync(run: Run) -> None:
    """Print the command that uploads wandb's offline directories, also for a run that failed."""
    if paths := unsynced(run.path):
        here = Path.cwd()
        near = [path.relative_to(here) if path.is_relative_to(here) else path for path in paths]
        print(f"to wandb: {shlex.join(['wandb', 'sync', *map(str, near)])}", file=sys.stderr)
