"""One run, in one process or several or as one of those that torchrun or SLURM has started."""

from __future__ import annotations

import math
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
from lmkit.errors import MachineError, UserError, as_user_error, exit_code
from lmkit.inference.identity import check_own, check_text, warn_of_text
from lmkit.run import Run
from lmkit.run.checkpoints import latest_checkpoint, newest_manifest
from lmkit.run.history import AFRESH, commanded, differences, last_changed
from lmkit.system import hardware, threads
from lmkit.system.processes import Launched, launched
from lmkit.system.redaction import redact
from lmkit.system.regular_file import DamagedError
from lmkit.system.rendezvous import broadcast, gather, meet
from lmkit.system.signals import Stopped, follow_parent
from lmkit.system.threads import Threads, counted
from lmkit.training.estimate import estimate, lasting
from lmkit.training.fit import work
from lmkit.training.limits import check_limits
from lmkit.training.loggers.wandb import unsynced
from lmkit.training.pace import NAME as CHOICES
from lmkit.training.pace import Pace
from lmkit.training.workers import log_to, work_in_processes
from lmkit.windows import DataModule

Result = TypeVar("Result")
TRIAL_SECONDS = 0.5  # of steps with the threads that a trial has chosen


def launch(run: Run, config: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """Do the work of a run, in as many processes as it is to have: its summary, with `run`, its
    directory; empty in all processes but the first.

    The run is written only once its data is prepared: a mistake found until then leaves no run
    behind, and one that is there as it was.
    """
    if place := launched():
        return _join(run, config, overrides, place)
    _check(run, config)
    data = _prepare(run, config)
    if _stays(run, config):
        return _summary(run)
    warn_of_text(run, data.prepared)
    if hardware.num_processes(config["trainer"]) > 1:
        run.start(config, overrides, sys.argv)
        return _hold(run, config, lambda: work_in_processes(run, config))
    with threads.use(None):  # `pace` sets the number, which it changes on the way
        pace = _pace(run, config, overrides, data)
        config = {**config, "threads": pace.threads.number}
        run.start(config, overrides, sys.argv)
        checkpoints = run.path / "checkpoints"

        def do() -> None:
            work(run, config, latest_checkpoint(checkpoints), data, pace)

        return _hold(run, config, do)


def _check(run: Run, config: dict[str, Any]) -> None:
    """Raises UserError where the run cannot be started, or has come further already, and where its
    checkpoints are not its own."""
    newest: Path | None = None
    manifest: dict[str, Any] = {}
    if run.path.is_dir():  # what is in its way, `check` says
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
    done = manifest.get("epochs_done", manifest.get("epoch", 0))
    for key, most, so_far in (
        ("max_epochs", epochs, done),
        ("max_steps", steps, manifest.get("step", 0)),
    ):
        if most is not None and -1 < most < so_far:
            raise UserError(
                f"trainer.{key}={most} but the run has come further: {newest} has {so_far} "
                f"{key[4:]} behind it; give more, or begin another run"
            )


def _prepare(run: Run, config: dict[str, Any]) -> DataModule:
    """The data, prepared; raises UserError where a run that goes on began with another text, or
    its trainer's limits or its schedule do not fit the text."""
    data = make_data(config)
    check_text(run, data.prepare())
    check_limits(config, data)
    return data


def _stays(run: Run, config: dict[str, Any]) -> bool:
    """Whether a run has ended by itself and nothing is asked of it that would change its result."""
    status = {}
    with suppress(DamagedError):  # which `start` says, and writes it anew
        status = run.status()
    if status.get("status") != "finished" or not run.before("summary.json"):
        return False
    if any(AFRESH.match(key) for key in differences(run.config(), config)):
        return False
    first, *others = _ends(config)
    by = f" (or with more of {', '.join(others)}, whichever ended it)" if others else ""
    print(
        f"{run.name}/{run.id} has ended and stays as it is; to train longer: "
        f"{run.command('resume')} {first}=N{by}",
        file=sys.stderr,
    )
    return True


def _ends(config: Mapping[str, Any]) -> list[str]:
    """The keys that may have ended a training."""
    keys = ("max_epochs", "max_steps", "max_time")
    limits = [f"trainer.{key}" for key in keys if config["trainer"].get(key) not in (None, -1)]
    stops = [key for key, node in config["callbacks"].items() if "patience" in node]
    return [*limits, *(f"callbacks.{key}.patience" for key in stops)]


def _pace(run: Run, config: dict[str, Any], overrides: list[str], data: DataModule) -> Pace:
    """The threads of a training, chosen by a trial unless they are set; says how long it takes.

    A run that goes on keeps a number that was set, and one that its bits depend on.
    """
    before = run.config().get("threads")  # nothing where the run is a new one
    now_set = any(each.lstrip("+").startswith("threads=") for each in overrides)
    is_set = now_set or (config["threads"] is not None and not (run.path / CHOICES).exists())
    _, manifest = newest_manifest(run.path / "checkpoints")
    if is_set and manifest:
        _say_what_set(run, config["threads"], overrides)
    wanted = config["threads"] if is_set else None
    config = {**config, "threads": wanted}
    measured = estimate(config, data, seconds=TRIAL_SECONDS, unless_short=True)
    chosen, rate = measured.threads, measured.tokens_per_second
    what, seconds = "an epoch", measured.epoch_seconds
    if 0 < measured.steps < math.inf:
        what = "what is left of the training" if manifest else "the training"
        seconds = (1 - manifest.get("step", 0) / measured.steps) * measured.seconds
    if before is not None and not manifest:
        print(f"{run.id} has no checkpoint yet: it begins again", file=sys.stderr)
    if seconds > 0:
        print(
            f"{what} will take about {lasting(seconds)} here: {measured.tokens:,} tokens an epoch, "
            f"{chosen}",
            file=sys.stderr,
        )
    number, fixed = chosen.number, is_set or not measured.any_threads
    if not is_set and fixed and before not in (None, number):
        said = f"{counted(before)} as before, so that the run goes on bit for bit"
        if (slow := chosen.rates.get(before, 0.0)) and slow < rate:
            said += f"; threads={number} computed {rate / slow:.1f} times as fast here now"
        print(said, file=sys.stderr)
        number, rate = before, slow
    return Pace(Threads(chosen.most, number, rate, fixed=fixed), run.path, is_set=is_set)


def _say_what_set(run: Run, threads: int | None, overrides: list[str]) -> None:
    """Say so where no command has set the number of threads: a file may have, or one is lost."""
    record: Any = run.read("overrides.yaml")
    given = [*overrides, *commanded(record)]
    if threads is not None and not any(each.lstrip("+").startswith("threads=") for each in given):
        print(
            f"{run.id} has no {CHOICES}, which would say that its threads were chosen: it keeps "
            f"{counted(threads)}, as set; with threads=null they are chosen anew",
            file=sys.stderr,
        )


def _join(
    run: Run, config: dict[str, Any], overrides: list[str], place: Launched
) -> dict[str, Any]:
    """As one of the processes that torchrun or SLURM has started; rank 0 holds the run."""
    if place.by == "torchrun":
        follow_parent(os.getppid())
    meet(place, config["trainer"]["accelerator"])
    newest = None

    def start() -> Path | None:
        run.start(config, overrides, sys.argv)
        return latest_checkpoint(run.path / "checkpoints")

    try:
        _agree(place, lambda: _check(run, config), alone=True)
        # By all of them, of which a lock lets one work: a wait for rank 0 would time out.
        data = _agree(place, lambda: _prepare(run, config))
        if broadcast(_agree(place, lambda: _stays(run, config), alone=True)):
            return {} if place.rank else _summary(run)
        if data and place.rank == 0:
            warn_of_text(run, data.prepared)
        newest = _agree(place, start, alone=True)
        path, newest = broadcast((run.path, newest))
        log_to(path, place.rank)
        if place.rank == 0:
            return _hold(run, config, lambda: work(run, config, newest, data))
        work(Run(path), config, newest, data)
    except Stopped as stopped:
        if place.by == "slurm":
            if stopped.signum == signal.SIGUSR1 and place.rank == 0:
                _requeue(run)
            raise
        # torchrun would take another code for a failure, and start again.
    return {}


def _requeue(run: Run) -> None:
    """Have SLURM begin this job again, or say why not."""
    try:
        subprocess.run(["scontrol", "requeue", os.environ["SLURM_JOB_ID"]], check=True)
    except (KeyError, OSError, subprocess.CalledProcessError) as error:
        what = f"the job is not queued again ({type(error).__name__}: {error})"
        print(f"{what}; to go on: {run.command('resume')}", file=sys.stderr)


def _agree(place: Launched, do: Callable[[], Result], *, alone: bool = False) -> Result | None:
    """The result of `do`, by every process or rank 0 alone; a mistake of one of them, which rank 0
    tells, ends them all."""
    mistake = result = None
    if place.rank == 0 or not alone:
        try:
            result = do()
        except UserError as error:
            mistake = str(error)
    if mistakes := list(filter(None, gather(mistake))):
        if place.rank:
            sys.exit(2)
        raise UserError(mistakes[0])
    return result


def _hold(run: Run, config: dict[str, Any], do: Callable[[], None]) -> dict[str, Any]:
    """Do the work of a started run and write down how it ended."""
    print(f"{_begins(run)}{run.name}/{run.id} in {run.path}{_changes(run)}", file=sys.stderr)
    try:
        do()
    except Stopped as stopped:
        run.write_status("stopped", stopped.name, stopped.exit_code)
        print(f"stopped by {stopped.name}; to go on: {run.command('resume')}", file=sys.stderr)
        raise
    except BaseException as error:
        told = as_user_error(error) or error
        reason = redact(str(told)).partition("\n")[0]
        run.write_status("failed", f"{type(told).__name__}: {reason}", exit_code(told))
        if isinstance(told, MachineError):
            raise MachineError(f"{told}, then go on with: {run.command('resume')}") from error
        raise
    else:
        run.write_status("finished", exit_code=0)
    finally:
        run.release()
        _say_how_to_sync(run)
    return _summary(run)


def _changes(run: Run) -> str:
    """What a resume has changed of the config."""
    record: Any = run.read("overrides.yaml") if run.continued else []
    said = [
        f"{key}={now} ({then} before)"
        for key, (then, now) in last_changed(record).items()
        if key not in ("threads", "outputs", "run_id", "name")
    ]
    return f", with {', '.join(said)}" if said else ""


def _summary(run: Run) -> dict[str, Any]:
    """What a run that has ended came to."""
    return {"run": str(run.path), **run.read("summary.json")}


def _begins(run: Run) -> str:
    """`run `, or from where it goes on; epochs count from 1, as on the bar."""
    _, manifest = newest_manifest(run.path / "checkpoints")
    if not manifest:
        return "run "
    return f"going on from step {manifest['step']:,} (epoch {manifest['epoch'] + 1}) of "


def _say_how_to_sync(run: Run) -> None:
    """Name what wandb has kept offline, also of a run that has failed or was stopped."""
    if parts := unsynced(run.path):
        here = Path.cwd()
        near = [part.relative_to(here) if part.is_relative_to(here) else part for part in parts]
        print(f"to wandb: {shlex.join(['wandb', 'sync', *map(str, near)])}", file=sys.stderr)
