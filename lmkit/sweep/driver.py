"""Runs a sweep: starts trials, follows and prunes them, and reports the results."""

from __future__ import annotations

import os
import shlex
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from datetime import UTC
from typing import Any, Literal

import torch

from lmkit.errors import MachineError, ResultError, UserError, exit_code
from lmkit.overrides import key_of
from lmkit.run import GROUP, Directory
from lmkit.sweep.board import Board
from lmkit.sweep.report import Shown, draw, identity, results, run_of, show
from lmkit.sweep.search import Search
from lmkit.sweep.study import OUTCOMES, FrozenTrial, Study, Trial
from lmkit.sweep.trial import TrialProcess
from lmkit.system import hardware
from lmkit.system.files import write_figure
from lmkit.system.signals import SIGNALS, Stopped
from lmkit.system.wording import counted

Metric = Literal["val/nll", "val/bits_per_byte"]
POLL_SECONDS = 0.2
HELD_SECONDS = 60.0  # in which a trial of a killed sweep saves a checkpoint and ends


class Sweep:
    """A sweep: the processes of its trials, and the study that decides about them."""

    def __init__(
        self,
        directory: Directory,
        config: Mapping[str, Any],
        search: Search,
        metric: Metric,
        study: Study,
        shown: Shown,
    ) -> None:
        self.directory = directory
        self.shown = shown
        self.identity = identity(directory)
        self.config = config
        self.search = search
        self.metric = metric
        self.study = study
        self.running: dict[int, tuple[Trial, TrialProcess]] = {}  # by slot
        self.killed: Counter[int] = Counter()  # how often each trial was killed, by number

    def run(self, total: int, slots: Sequence[Mapping[str, str]]) -> dict[str, Any]:
        """Run trials, one per slot at a time, until there were `total`; returns the results."""
        print(
            f"sweep {self.directory.name}/{self.identity} in {self.directory.path}", file=sys.stderr
        )
        self.directory.write_status("running")
        if total > (size := self.study.size()):
            are = "is 1 combination" if size == 1 else f"are {size:,} combinations"
            print(
                f"there {are} of these values: the sweep ends when it has tried "
                f"{'it' if size == 1 else 'them all'}, before num_trials={total}",
                file=sys.stderr,
            )
            total = int(size)
        try:
            self._reopen_finished()
            limits = self.config["trainer"]
            with closing(Board(self.study, total, self.metric, self.shown, limits)) as board:
                while self._fill(total, slots) or self.running:
                    self._follow(board)
                    time.sleep(POLL_SECONDS)
        except BaseException as error:
            self._stop()
            code = exit_code(error)
            self.directory.write_status("stopped" if code > 128 else "failed", repr(error), code)
            print(f"to go on: {self._command()}", file=sys.stderr)
            if isinstance(error, Stopped):
                error.result = results(self.study, self.directory, self.metric, self.shown)
            raise
        return self._report()

    def _reopen_finished(self) -> None:
        """Reopen trials that had failed but whose runs the user has finished since, as with `lmkit
        resume`."""
        record = self.directory.before("sweep.json").get("trials")
        if isinstance(record, list) and len(record) > self.study.num_started():
            raise UserError(
                f"{self.study.file} is damaged: it has {self.study.num_started()} trials, "
                f"{self.directory.path / 'sweep.json'} has {len(record)}; put back a copy of it, "
                "or begin another sweep with another run_id"
            )
        trials = self.study.trials()
        self.study.reopen([trial.number for trial in trials if self._finished_since(trial)])

    def _finished_since(self, trial: FrozenTrial) -> bool:
        """Whether the run of a trial that failed or was pruned has been finished afterwards."""
        if OUTCOMES[trial.state] not in ("failed", "pruned") or trial.datetime_complete is None:
            return False
        try:
            status = run_of(self.directory, trial.number).status()
        except UserError:  # a damaged run does not harm the sweep
            return False
        concluded = trial.datetime_complete.astimezone(UTC).isoformat()
        return status.get("status") == "finished" and str(status.get("ended")) > concluded

    def _fill(self, total: int, slots: Sequence[Mapping[str, str]]) -> bool:
        """Start trials in free slots; returns whether any was started."""
        free = [slot for slot in range(len(slots)) if slot not in self.running]
        for slot in free:
            trial = self.study.unfinished()
            if trial is None and self.study.num_started() < total:
                trial = self.study.ask()
            if trial is None:
                return False  # there were `total` trials, or no combination is left
            self.running[slot] = (trial, self._start(trial, slots[slot], len(slots)))
            self._write()
        return bool(free)

    def _start(self, trial: Trial, environment: Mapping[str, str], parallel: int) -> TrialProcess:
        run = run_of(self.directory, trial.number)
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
        log = self.directory.path / f"trial-{trial.number:03d}.log"
        environment = {**os.environ, **environment, GROUP: self.identity}
        return TrialProcess(run, arguments, self.metric, log, environment)

    def _follow(self, board: Board) -> None:
        """Read what every trial has logged, and end those that are not worth continuing."""
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
        """Resume a trial whose process was killed, as by a system that is out of memory."""
        why = process.what_failed(code)
        print(f"trial {trial.number} was {why}: starting it again", file=sys.stderr)
        process.start()

    def _conclude(self, trial: Trial, process: TrialProcess, code: int) -> None:
        """Tell the study the outcome of a process that has ended."""
        finished = code == 0 or process.status().get("status") == "finished"
        if finished and (value := process.value()) is not None:
            self.study.tell(trial, "finished", value)
        elif process.pruned and code > 128:
            why = f"pruned after {counted(len(process.values), 'validation')}"
            process.run.write_status("stopped", why, code)
            self.study.tell(trial, "pruned", why=why)
        elif process.out_of_room(code):  # other trials would fail too
            raise MachineError(f"trial {trial.number}: {process.what_failed(code)}")
        elif code < 0 or code - 128 in SIGNALS:
            self.study.interrupt(trial, process.what_failed(code))
        else:
            why = process.what_failed(code) if code else f"no {self.metric} that is a number"
            self.study.tell(trial, "failed", why=why)

    def _stop(self) -> None:
        """Stop the trials with a checkpoint, from which they resume with the sweep."""
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
        result = results(self.study, self.directory, self.metric, self.shown)
        self.directory.write("sweep.json", result)
        return result

    def _report(self) -> dict[str, Any]:
        """Print and draw the results."""
        result = self._write()
        interrupted = result["counts"].get("interrupted", 0)
        self.directory.write_status("stopped" if interrupted else "finished", exit_code=0)
        show(result)
        if interrupted:
            raise ResultError(
                f"interrupted: {interrupted} of {len(result['trials'])} trials; to take them up "
                f"again: {self._command()}",
                result,
            )
        if not result["best"]:
            raise ResultError(
                f"no trial finished; what they printed is in {self.directory.path}", result
            )
        log = [dimension.key for dimension in self.search.dimensions if dimension.log]
        write_figure(self.directory.path / "sweep.png", draw(result, log))
        where = self.directory.outputs_argument()
        print(f"picture:       {self.directory.path / 'sweep.png'}")
        print(f"test the best: lmkit evaluate {result['best']['run']}{where} split=test")
        print(f"the dashboard: lmkit dashboard{where}")
        return result

    def _command(self) -> str:
        search = self.search
        fixed = [a for a in (*search.own, *search.fixed) if key_of(a) != "run_id"]
        varied = [dimension.source for dimension in search.dimensions]
        words = [*search.flags, *fixed, *varied, f"run_id={self.identity}"]
        return shlex.join(["lmkit", "sweep", *words])
