"""`lmkit train -m`: a run for each combination of values, with any of Hydra's launchers."""

from __future__ import annotations

import logging
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.hydra import Hydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lmkit.config.as_typed import as_texts, quoted, text_keys
from lmkit.config.check import check
from lmkit.config.compose import check_config_name, compose, hydra_over
from lmkit.config.grammar import ASSIGNMENT, normalise, parse_flags, spell
from lmkit.config.groups import config_folders, group_options
from lmkit.config.loggers import grouped
from lmkit.config.mistakes import first_lines, report, reported
from lmkit.errors import ResultError, UserError, install
from lmkit.metrics import perplexity
from lmkit.run import Run, check_name, mint_id
from lmkit.sweep.job import LOG, POLL, THREADS, Job, Outcome, ask_to_stop, asked_to_stop, clear
from lmkit.sweep.search import check_values
from lmkit.system.files import naming
from lmkit.system.processes import launched
from lmkit.system.signals import SIGNALS, Stopped, StopSignals

log = logging.getLogger(__name__)

OF_HYDRA = re.compile(r"[+~]*(hydra[./][\w./]+)(?:=(.*))?$", re.DOTALL)
# Hydra would write config files and logs too, but lmkit has its own.
DEFAULTS = {
    "hydra.output_subdir": "null",
    "hydra/job_logging": "none",
    "hydra/hydra_logging": "none",
    "hydra.mode": "MULTIRUN",
}
STOPPED = [128 + signum for signum in SIGNALS]
# By launcher: the extra that installs it, and its package.
PLUGINS = {
    "joblib": ("joblib", "hydra_joblib_launcher"),
    "submitit_local": ("slurm", "hydra_submitit_launcher"),
    "submitit_slurm": ("slurm", "hydra_submitit_launcher"),
    "ray": ("ray", "hydra_ray_launcher"),
}


def multirun(argv: Sequence[str]) -> dict[str, Any]:
    """Check all jobs that are known in advance, run them, and print the outcome of each.

    A job that fails does not stop others; the exit code is then 1, or 2 if all failures are
    mistakes of the user.
    """
    if launched():
        raise UserError("lmkit train -m starts its runs itself: call it as one process")
    arguments = parse_flags(argv, multirun=True)
    folders = config_folders(arguments.config_dir)
    config_dir = str(folders[1]) if folders[1:] else None
    flags = [f"--config-dir={config_dir}"] if config_dir else []
    if arguments.config_name:
        flags.append(f"--config-name={arguments.config_name}")
    lines, identity = _lines(arguments.overrides, folders)
    of_hydra = _of_hydra(arguments.overrides, identity)
    name = arguments.config_name or "train"
    check_config_name(name, folders)
    with _hydra(folders) as hydra:
        config = hydra.compose_config(name, [*of_hydra, *lines], RunMode.MULTIRUN)
        _check_launcher(config.hydra.launcher)
        texts = text_keys(OmegaConf.to_container(config, resolve=False))  # type: ignore[arg-type]
        lines = [as_texts(line, texts) for line in lines]
        jobs = [
            [spell(line, group_options(folders)) for line in job]
            for job in _expand(config.hydra.sweeper, lines, hydra.config_loader)
        ]
        directory = Path(config.hydra.sweep.dir).expanduser().absolute()
    _check_jobs(jobs, flags, identity)
    clear(directory)
    of_hydra.append(f"hydra.sweep.dir={quoted(str(directory))}")
    threads = {key: value for key, value in os.environ.items() if THREADS.match(key)}
    task = Job(identity, directory, Path.cwd(), config_dir, flags, threads)
    print(f"sweep {identity} in {directory}", file=sys.stderr)
    with _hydra(folders) as hydra:
        _run(lambda: hydra.multirun(name, task, [*of_hydra, *lines]), directory, jobs)
    return _conclude(identity, directory, jobs)


def _lines(arguments: Sequence[str], folders: Sequence[Path]) -> tuple[list[str], str]:
    """The overrides of the config in Hydra's grammar, and the id of the sweep."""
    options, parser = group_options(folders), OverridesParser.create()
    lines: list[str] = []
    mistakes: list[str] = []
    identity = mint_id()
    for argument in arguments:
        line = normalise(argument, options)
        if OF_HYDRA.match(argument):
            continue
        if ASSIGNMENT.match(argument) is None and not argument.startswith("~"):
            mistakes.append(f"{argument}: expected key=value")
            continue
        try:
            override = parser.parse_override(line)
        except HydraException as error:
            mistakes.append(f"{argument}: {first_lines(error)}")
            continue
        if override.key_or_group != "run_id":
            lines.append(line)
        elif override.is_sweep_override():
            mistakes.append(f"{argument}: one id for the sweep; its runs are ID-0, ID-1, ...")
        elif (value := override.value()) is not None:
            identity = value if isinstance(value, str) else argument.partition("=")[2]
            check_name("run_id", identity)
    if mistakes:
        raise UserError(report(mistakes))
    return lines, identity


def _of_hydra(arguments: Sequence[str], identity: str) -> list[str]:
    """The overrides of Hydra's own settings, after lmkit's defaults for them."""
    overrides: dict[str, str] = {}
    for argument in arguments:
        if match := OF_HYDRA.match(argument):
            key, value = match.groups()
            overrides[key] = argument
            extra, package = PLUGINS.get(value, ("", "")) if key == "hydra/launcher" else ("", "")
            if extra and not (find_spec("hydra_plugins") and find_spec(f"hydra_plugins.{package}")):
                raise UserError(f"{argument} needs a package: {install(extra)}")
    defaults = DEFAULTS | {"hydra.sweep.dir": f"${{outputs}}/multirun/{identity}"}
    left = (f"{k}={v}" for k, v in defaults.items() if k not in overrides)
    return [*left, *overrides.values()]


@contextmanager
def _hydra(folders: Sequence[Path]) -> Iterator[Hydra]:
    """Hydra with lmkit's config groups; its errors about a command line become UserErrors."""
    try:
        with hydra_over(folders) as hydra:
            yield hydra
    except (HydraException, OmegaConfBaseException) as error:
        causes = [e for e in (error, error.__cause__) if isinstance(e, Exception)]
        raise UserError(": ".join(map(first_lines, causes))) from error


def _check_launcher(launcher: DictConfig) -> None:
    for key in ("tasks_per_node", "nodes"):
        if (launcher.get(key) or 1) > 1:
            raise UserError(
                f"hydra.launcher.{key}={launcher[key]}: a job is one task, which starts the "
                "processes of its run itself: set trainer.devices, and cpus or gpus of the task"
            )


def _expand(sweeper: DictConfig, lines: list[str], loader: Any) -> list[list[str]]:
    """The lines of each job; empty if a sweeper other than Hydra's own chooses the jobs."""
    if not sweeper._target_.endswith(".BasicSweeper"):
        return []
    params = [f"{key}={value}" for key, value in (sweeper.params or {}).items()]
    overrides = OverridesParser.create(loader).parse_overrides([*params, *lines])
    for override in overrides:
        typed = str(override.input_line).removeprefix("++")
        if override.is_discrete_sweep():
            check_values(typed, override)
        elif override.is_sweep_override():
            raise UserError(f"{typed}: train -m takes values one by one; lmkit sweep draws them")
    return BasicSweeper.split_arguments(overrides, None)[0]


def _check_jobs(jobs: list[list[str]], flags: list[str], identity: str) -> None:
    """Raise one UserError with the mistakes of all jobs, each once, and with those of resuming a
    job's run that exists already."""
    jobs_with: dict[str, list[int]] = {}
    for number, arguments in enumerate(jobs):
        try:
            config, _ = check(compose([*flags, *arguments]))
            run = Run.named(config["outputs"], config["name"], f"{identity}-{number}")
            if run.config():
                run.check(grouped(config))
        except UserError as error:
            for mistake in reported(error):
                jobs_with.setdefault(mistake, []).append(number)
    mistakes = [
        mistake if len(numbers) == len(jobs) else f"job {', '.join(map(str, numbers))}: {mistake}"
        for mistake, numbers in jobs_with.items()
    ]
    if mistakes:
        raise UserError(report(mistakes))


def _run(sweep: Callable[[], Any], directory: Path, jobs: list[list[str]]) -> None:
    """Sweep in a thread, as launchers take over signals in the main thread; log each outcome."""
    failures: list[BaseException] = []

    def target() -> None:
        # Processes of a launcher inherit this, so that only the sweep acts on Ctrl-C in a terminal.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            sweep()
        except BaseException as error:
            failures.append(error)

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray = logging.getLogger("ray._private.worker")
    ray.addFilter(lambda record: "not the main thread" not in record.getMessage())
    thread = threading.Thread(target=target, daemon=True)
    logged: set[int] = set()
    with StopSignals() as signals:
        signals.deferred = True
        thread.start()
        while thread.is_alive():
            thread.join(POLL)
            signals.install()  # Ray replaces the handler of SIGTERM
            if signals.received and not asked_to_stop(directory):
                ask_to_stop(directory, signals.received)
            for outcome in Outcome.all(directory):
                if outcome.job not in logged:
                    logged.add(outcome.job)
                    count = f"{len(logged)} of {len(jobs)}" if jobs else str(len(logged))
                    log.info("%s: %s", count, _line(outcome, jobs))
    if failures and not signals.received:
        with naming(directory):  # as when Hydra cannot write multirun.yaml on a full disk
            raise failures[0]


def _conclude(identity: str, directory: Path, jobs: list[list[str]]) -> dict[str, Any]:
    """Print the outcome of each job, and return the result or raise the error of the sweep."""
    outcomes = Outcome.all(directory)
    for outcome in outcomes:
        print(_line(outcome, jobs))
    result = {"sweep": str(directory), "jobs": [asdict(outcome) for outcome in outcomes]}
    failed = [outcome for outcome in outcomes if outcome.exit_code != 0]
    if signum := asked_to_stop(directory):
        stopped = Stopped(signum)
        stopped.result = result
        again = f"the same command with run_id={identity}"
        print(f"stopped by {stopped.name}; to go on: {again}", file=sys.stderr)
        raise stopped
    if failed:
        logs = ", ".join(str(directory / str(outcome.job) / LOG) for outcome in failed)
        message = f"{len(failed)} of {len(outcomes)} jobs failed, see {logs}"
        mistakes = all(outcome.exit_code == 2 for outcome in failed)
        raise ResultError(message, result, exit_code=2 if mistakes else 1)
    return result


def _line(outcome: Outcome, jobs: list[list[str]]) -> str:
    """An outcome as a line, with the overrides that differ from those of other jobs."""
    common = set.intersection(*map(set, jobs)) if len(jobs) > 1 else set()
    apart = " ".join(argument for argument in outcome.overrides if argument not in common)
    if outcome.exit_code is None or outcome.exit_code in STOPPED:
        what = outcome.why
    elif outcome.exit_code:
        what = f"failed with exit code {outcome.exit_code}: {outcome.why}"
    elif outcome.nll is None:
        what = "done, without a validation"
    else:
        what = f"best val perplexity {perplexity(outcome.nll):,.2f}"
    return f"{outcome.run_id}  {apart}  {what}"
