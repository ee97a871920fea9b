"""`lmkit sweep`: trainings over keys with several values, each a run like any other."""

from __future__ import annotations

import io
import os
import shlex
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from datetime import UTC
from pathlib import Path
from typing import Any, Literal

import torch

from lmkit.assembly import make_data
from lmkit.config.check import check
from lmkit.config.compose import compose
from lmkit.config.mistakes import report, reported
from lmkit.errors import MachineError, ResultError, UserError, exit_code
from lmkit.launch import outputs_argument
from lmkit.loggers import GROUP
from lmkit.run import Run, mint_id
from lmkit.search import Search
from lmkit.study import OUTCOMES, FrozenTrial, Pruner, Sampler, Study, Trial
from lmkit.sweep_report import Board, Shown, draw, identity, results, run_of, show
from lmkit.system import hardware
from lmkit.system.files import write_atomically
from lmkit.system.processes import launched
from lmkit.system.signals import SIGNALS, Stopped
from lmkit.trial import TrialProcess

Metric = Literal["val/nll", "val/bits_per_byte"]
NUM_TRIALS = 20
POLL_SECONDS = 0.2
HELD_SECONDS = 60.0  # that a trial of a killed sweep may take to save its place and end


def sweep(
    config: dict[str, Any],
    search: Search,
    *,
    sampler: Sampler = "tpe",
    num_trials: int | None = None,
    parallel: int = 1,
    metric: Metric = "val/nll",
    pruner: Pruner = "none",
    num_startup_trials: int = 5,
    num_warmup_validations: int = 1,
) -> dict[str, Any]:
    """Train with many values of the keys that have several, and show what came of it.

        lmkit sweep optimizer.lr='tag(log,interval(1e-4,1e-2))' model.dropout=0,0.2,0.4
        lmkit sweep sweep=lstm num_trials=40 pruner=median
        lmkit sweep seed=1,2,3 sampler=grid

    Each trial is a run, <id>-000 and so on, that never sees the test split. With the run_id of a
    sweep that was stopped or killed, goes on to num_trials in all. No combination of values is
    tried twice: a sweep over lists ends when it has tried them all.
    sampler: tpe learns from the trials so far, random does not, grid takes all combinations.
    num_trials: how many ever start, failed ones too; null: 20, or all of a grid.
    parallel: trials at a time; they share the cores, or have GPUs of their own.
    metric: of the validations, the lower the better.
    pruner: median or halving end a trial whose validations are worse than those of others.
    num_startup_trials: with pruner=median, so many trials come before any is ended.
    num_warmup_validations: so many validations of a trial come before it is ended.
    """
    if launched():
        raise UserError("lmkit sweep starts its trials itself: call it as one process")
    shown, mistakes = _read(search, config)
    search = search.distinct(shown)
    points = search.grid() if sampler == "grid" else []
    total = (len(points) or NUM_TRIALS) if num_trials is None else num_trials
    numbers = {
        **{"num_trials": (total, 1), "parallel": (parallel, 1)},
        "num_startup_trials": (num_startup_trials, 0),
        "num_warmup_validations": (num_warmup_validations, 0),
    }
    low = [f"{k}={n}: must be at least {least}" for k, (n, least) in numbers.items() if n < least]
    mistakes = [*low, *_impossible(search, config, metric, total, points), *mistakes]
    if mistakes:
        raise UserError(report(list(dict.fromkeys(mistakes))))
    slots = _slots(config, parallel)
    settings = {
        "search": [dimension.source for dimension in search.dimensions],
        "arguments": [a for a in search.fixed if not a.startswith(("outputs=", "run_id="))],
        **{"sampler": sampler, "metric": metric, "pruner": pruner, "seed": config["seed"]},
        "num_startup_trials": num_startup_trials,
        "num_warmup_validations": num_warmup_validations,
    }
    _prepare(config, metric)
    run_id = config["run_id"] or mint_id()
    place = Run(Path(config["outputs"]) / config["name"] / f"{run_id}-sweep")
    with place.holding():
        _same_or_new(place, settings)
        study = Study(
            place.path / "study.db",
            search.dimensions,
            sampler=sampler,
            pruner=pruner,
            warmup=(num_startup_trials, num_warmup_validations),
            seed=config["seed"],
            points=points,
        )
        return Sweep(place, config, search, metric, study, shown).run(total, slots)


class Sweep:
    """The processes of a sweep's trials, and the study that decides about them."""

    def __init__(
        self,
        place: Run,
        config: Mapping[str, Any],
        search: Search,
        metric: Metric,
        study: Study,
        shown: Shown,
    ) -> None:
        self.place = place
        self.shown = shown
        self.identity = identity(place)
        self.config = config
        self.search = search
        self.metric = metric
        self.study = study
        self.running: dict[int, tuple[Trial, TrialProcess]] = {}  # by slot
        self.killed: Counter[int] = Counter()  # how often a trial was, by number

    def run(self, total: int, slots: Sequence[Mapping[str, str]]) -> dict[str, Any]:
        """Start trials until there were `total`, one a slot at a time; what they came to."""
        print(f"sweep {self.place.name}/{self.identity} in {self.place.path}", file=sys.stderr)
        self.place.write_status("running")
        if total > (size := self.study.size()):
            are = "is 1 combination" if size == 1 else f"are {size:,} combinations"
            print(
                f"there {are} of these values: the sweep ends when it has tried "
                f"{'it' if size == 1 else 'them all'}, before num_trials={total}",
                file=sys.stderr,
            )
            total = int(size)
        try:
            self._take_up()
            with closing(Board(self.study, total, self.metric, self.shown)) as board:
                while self._fill(total, slots) or self.running:
                    self._follow(board)
                    time.sleep(POLL_SECONDS)
        except BaseException as error:
            self._stop()
            code = exit_code(error)
            self.place.write_status("stopped" if code > 128 else "failed", repr(error), code)
            print(f"to go on: {self._command()}", file=sys.stderr)
            if isinstance(error, Stopped):
                error.result = results(self.study, self.place, self.metric, self.shown)
            raise
        return self._report()

    def _take_up(self) -> None:
        """Hear of runs that have been finished by hand, as by `lmkit resume`, since the sweep was
        told that they had failed."""
        record = self.place.before("sweep.json").get("trials")
        if isinstance(record, list) and len(record) > self.study.num_started():
            raise UserError(
                f"{self.study.file} is damaged: it has {self.study.num_started()} trials, "
                f"{self.place.path / 'sweep.json'} has {len(record)}; put back a copy of it, or "
                "begin another sweep with another run_id"
            )
        trials = self.study.trials()
        self.study.reopen([trial.number for trial in trials if self._finished_since(trial)])

    def _finished_since(self, trial: FrozenTrial) -> bool:
        """Whether the run of a trial that had failed or was pruned has been finished afterwards."""
        if OUTCOMES[trial.state] not in ("failed", "pruned") or trial.datetime_complete is None:
            return False
        try:
            status = run_of(self.place, trial.number).status()
        except UserError:  # what is damaged is that run's own
            return False
        told = trial.datetime_complete.astimezone(UTC).isoformat()
        return status.get("status") == "finished" and str(status.get("ended")) > told

    def _fill(self, total: int, slots: Sequence[Mapping[str, str]]) -> bool:
        """Start trials where there is room; whether any was started."""
        free = [slot for slot in range(len(slots)) if slot not in self.running]
        for slot in free:
            trial = self.study.unfinished()
            if trial is None and self.study.num_started() < total:
                trial = self.study.ask()
            if trial is None:
                return False  # there were as many as are wanted, or no other combination is left
            self.running[slot] = (trial, self._start(trial, slots[slot], len(slots)))
            self._write()
        return bool(free)

    def _start(self, trial: Trial, environment: Mapping[str, str], parallel: int) -> TrialProcess:
        run = run_of(self.place, trial.number)
        deadline = time.monotonic() + HELD_SECONDS
        while run.held() and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        processes = hardware.num_processes(self.config["trainer"])
        threads = max(torch.get_num_threads() // (parallel * processes), 1)
        values = [trial.params[dimension.key] for dimension in self.search.dimensions]
        arguments = [
            *([f"threads={threads}"] if parallel > 1 else []),
            *self.search.arguments(values),
            *(f"outputs={self.config['outputs']}", f"name={run.name}", f"run_id={run.id}"),
            "trainer.limit_test_batches=0",
        ]
        log = self.place.path / f"trial-{trial.number:03d}.log"
        environment = {**os.environ, **environment, GROUP: self.identity}
        return TrialProcess(run, arguments, self.metric, log, environment)

    def _follow(self, board: Board) -> None:
        """Hear from every trial, end those that are not worth going on."""
        for slot, (trial, process) in list(self.running.items()):
            code = process.poll()
            pruned = process.pruned or self.study.prunes(trial, process.values)
            if code is None:
                if pruned and not process.pruned:
                    process.prune()
                continue
            again = self.killed[trial.number] < self.config["restarts"] and not process.pruned
            if code < 0 and again:
                self.killed[trial.number] += 1
                self._again(trial, process, code)
                continue
            del self.running[slot]
            self._conclude(trial, process, code)
            self._write()
            board.ended(trial.number)
        board.show([pair for _, pair in sorted(self.running.items())])

    def _again(self, trial: Trial, process: TrialProcess, code: int) -> None:
        """Have a trial go on whose process was killed, as by a system that is out of memory."""
        why = process.what_failed(code)
        print(f"trial {trial.number} was {why}: starting it again", file=sys.stderr)
        process.start()

    def _conclude(self, trial: Trial, process: TrialProcess, code: int) -> None:
        """Tell the study what came of a process that has ended."""
        finished = code == 0 or process.status().get("status") == "finished"
        if finished and (value := process.value()) is not None:
            self.study.tell(trial, "finished", value)
        elif process.pruned and code > 128:
            why = f"pruned after {len(process.values)} validations"
            process.run.write_status("stopped", why, code)
            self.study.tell(trial, "pruned", why=why)
        elif process.out_of_room(code):  # other trials would end so too
            raise MachineError(f"trial {trial.number}: {process.what_failed(code)}")
        elif code < 0 or code - 128 in SIGNALS:
            self.study.interrupt(trial, process.what_failed(code))
        else:
            why = process.what_failed(code) if code else f"no {self.metric} that is a number"
            self.study.tell(trial, "failed", why=why)

    def _stop(self) -> None:
        """Let the trials save their places and end; they go on with the sweep."""
        processes = [process for _, process in self.running.values()]
        for process in processes:
            process.stop()
        try:
            for process in processes:
                process.wait()
        except Stopped:
            for process in processes:
                process.kill()
            raise

    def _write(self) -> dict[str, Any]:
        found = results(self.study, self.place, self.metric, self.shown)
        self.place.write("sweep.json", found)
        return found

    def _report(self) -> dict[str, Any]:
        """Print and draw what came of the trials."""
        found = self._write()
        interrupted = found["counts"].get("interrupted", 0)
        self.place.write_status("stopped" if interrupted else "finished", exit_code=0)
        show(found)
        if interrupted:
            raise ResultError(
                f"interrupted: {interrupted} of {len(found['trials'])} trials; to take them up "
                f"again: {self._command()}",
                found,
            )
        if not found["best"]:
            raise ResultError(
                f"no trial finished; what they printed is in {self.place.path}", found
            )
        file = io.BytesIO()
        draw(found).savefig(file, format="png")
        write_atomically(self.place.path / "sweep.png", file.getvalue())
        where = outputs_argument(self.place)
        print(f"picture:       {self.place.path / 'sweep.png'}")
        print(f"test the best: lmkit evaluate {found['best']['run']}{where} split=test")
        print(f"the dashboard: lmkit dashboard{where}")
        return found

    def _command(self) -> str:
        search = self.search
        given = [a for a in (*search.own, *search.fixed) if not a.startswith("run_id=")]
        varied = [dimension.source for dimension in search.dimensions]
        words = [*search.flags, *given, *varied, f"run_id={self.identity}"]
        return shlex.join(["lmkit", "sweep", *words])


def _slots(config: Mapping[str, Any], parallel: int) -> list[dict[str, str]]:
    """What the environment of each of the trials at a time has beside this one's."""
    if parallel == 1 or config["trainer"]["accelerator"] != "cuda":
        return [{}] * parallel
    each = hardware.num_processes(config["trainer"])
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(
        map(str, range(torch.cuda.device_count()))
    )
    gpus = visible.split(",")
    if parallel * each > len(gpus):
        raise UserError(
            f"parallel={parallel} trials of trainer.devices={each} need {parallel * each} GPUs, "
            f"here are {len(gpus)}; lower either"
        )
    shares = [gpus[slot * each : (slot + 1) * each] for slot in range(parallel)]
    return [{"CUDA_VISIBLE_DEVICES": ",".join(share)} for share in shares]


def _prepare(config: dict[str, Any], metric: Metric) -> None:
    """Make the stores once, and not by each of the first trials; raises UserError where no trial
    would have the metric."""
    data = make_data(config)
    store, tokenizer = data.prepare().stores.get("valid"), data.tokenizer
    if metric == "val/bits_per_byte" and not (tokenizer.lossless and store and store.num_bytes):
        raise UserError(
            f"metric={metric}: never logged, as the tokenizer ({tokenizer.name}) does not keep "
            "every text as it is; set metric=val/nll, or take another tokenizer"
        )


def _impossible(
    search: Search,
    config: Mapping[str, Any],
    metric: Metric,
    total: int,
    points: Sequence[Mapping[str, str]],
) -> Iterator[str]:
    """What no trial could do."""
    if points and total > len(points):
        combinations = "combination" if len(points) == 1 else "combinations"
        yield f"num_trials={total}: the grid has {len(points)} {combinations}"
    if config["trainer"].get("limit_val_batches") == 0 or config["trainer"].get("fast_dev_run"):
        yield "trials are compared by their validation: without one there is no sweep"
    tokenizers = [d.source for d in search.dimensions if d.key.partition(".")[0] == "tokenizer"]
    if tokenizers and metric == "val/nll":
        yield (
            f"{tokenizers[0]}: nats per token of different tokens cannot be compared; "
            "set metric=val/bits_per_byte"
        )


def _read(search: Search, config: Mapping[str, Any]) -> tuple[Shown, list[str]]:
    """By key, what the config has for each value of a list; and every value that it rejects."""
    mistakes: list[str] = []
    shown: dict[str, dict[str, Any]] = {}
    for place, dimension in enumerate(search.dimensions):
        firsts = [each.examples()[0] for each in search.dimensions]
        first, *others = dimension.examples()
        shown[dimension.key] = {str(first): _value(config, dimension.key, first)}
        for value in others:  # the first point has been checked whole
            firsts[place] = value
            try:
                checked, _ = check(compose(search.arguments(firsts)))
                shown[dimension.key][str(value)] = _value(checked, dimension.key, value)
            except UserError as error:
                mistakes += reported(error)
    return shown, mistakes


def _value(config: Mapping[str, Any], key: str, written: object) -> Any:
    """What a config has at a key; of a group, which option was `written`."""
    found: Any = config
    for part in key.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    is_group = isinstance(found, Mapping) or (found is None and written != "null")
    return written if is_group else found


def _same_or_new(place: Run, settings: dict[str, Any]) -> None:
    """Write down what the sweep is; one that goes on must be the same."""
    then = place.read("sweep.yaml")
    if not then and (place.path / "study.db").exists():
        raise UserError(
            f"{place.path} has lost its sweep.yaml, which says what its trials are: put a copy of "
            "it back, or choose another run_id"
        )
    changes = [
        f"\n  {key}: {then.get(key)} there, {settings[key]} now"
        for key in settings
        if then and then.get(key) != settings[key]
    ]
    if changes:
        raise UserError(
            f"run_id={identity(place)} is another sweep ({place.path}):"
            f"{''.join(changes)}\nonly num_trials and parallel may change; choose another run_id"
        )
    place.write("sweep.yaml", settings)
