"""`lmkit verify`: tests what the documentation promises of resuming and of several processes, with
a run's own config on this machine."""

from __future__ import annotations

import json
import math
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from rich.console import Console
from rich.table import Table

from lmkit import kernels
from lmkit.assembly import make_data
from lmkit.errors import ResultError, UserError
from lmkit.inference import Text, TrainedModel
from lmkit.run import Run, no_checkpoint
from lmkit.run.checkpoints import AVERAGED, damage, latest_checkpoint, load_checkpoint
from lmkit.run.process import start, told_error
from lmkit.training.counted import is_counted

TIMES = re.compile(r"seconds|tokens_per_second")
NEAR = 1e-5  # nats by which another order of sums may change a result
FIRST = 10  # steps after which rounding may have grown
NUM_TOKENS = 20_000  # that are evaluated alone and in batches


@dataclass
class Finding:
    """One promise, whether it holds here, and what was measured."""

    promise: str
    holds: bool | None  # None: could not be tested
    found: str


def verify(
    run: Annotated[Run, no_checkpoint], config: Mapping[str, Any], *, steps: int = 30
) -> dict[str, Any]:
    """Train a run's config for some steps, killed, resumed and on two processes, and compare.

        lmkit verify latest
        lmkit verify latest steps=100

    steps: updates of each of these trainings, which start from nothing in a directory of their
    own, in fp32; the run itself is not touched.
    """
    if steps < 2:
        raise UserError(f"steps={steps}: must be at least 2")
    if is_counted(config):
        raise UserError(f"{run.name}/{run.id} was counted: it has no steps to try; name another")
    make_data(dict(config)).prepare()
    findings = []
    with _trials(config) as trials:
        console = Console(stderr=True)
        for check in (_killed, _processes, _batches, _loads):
            with console.status(check.__doc__ or ""):
                findings.append(check(trials, steps))
    table = Table(box=None)
    for column in ("", "promise", "found"):
        table.add_column(column)
    sign = {True: "[green]holds[/]", False: "[red]BROKEN[/]", None: "not tried"}
    for finding in findings:
        table.add_row(sign[finding.holds], finding.promise, finding.found)
    Console().print(table)
    result = {"run": f"{run.name}/{run.id}", "findings": [asdict(each) for each in findings]}
    if broken := sum(finding.holds is False for finding in findings):
        raise ResultError(f"{broken} of {len(findings)} promises do not hold", result)
    return result


class Trials:
    """Short trainings of a config, each a run of its own under `outputs`."""

    def __init__(self, outputs: Path, config: Mapping[str, Any]) -> None:
        self.outputs = outputs
        self.config = config

    def run(self, name: str, steps: int, *, kill: bool = False, processes: int = 1) -> Run:
        """Train in real processes; with `kill`, SIGKILL them halfway and resume."""
        run = Run(self.outputs / "verify" / name)
        if not run.path.exists():
            run.path.mkdir(parents=True)
            run.write("config.yaml", self._short(steps, processes))
        elif run.status()["status"] == "finished":
            return run
        process = start(
            ["resume", name, f"outputs={self.outputs}"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            metrics = run.path / "metrics.jsonl"
            while kill and process.poll() is None:
                if metrics.exists() and metrics.read_bytes().count(b"\n") > steps // 2:
                    process.send_signal(signal.SIGKILL)
                    process.communicate()
                    return self.run(name, steps, processes=processes)
            _, err = process.communicate()
        except BaseException:  # the process's outputs are about to be removed
            process.terminate()
            process.communicate()
            raise
        if process.returncode:
            raise _failed(process.returncode, err)
        return run

    def _short(self, steps: int, processes: int) -> dict[str, Any]:
        config = deepcopy(dict(self.config))
        several = processes > 1
        gpus = torch.cuda.device_count()
        if config["trainer"]["accelerator"] == "cuda" and gpus < max(processes, 2):
            config["trainer"]["accelerator"] = "cpu"  # both, so that they can be compared
            config["kernels"] = kernels.choice("cpu")
        config["trainer"] |= {
            **{"precision": "32-true", "devices": processes, "num_nodes": 1},
            **{"strategy": "ddp" if several else "auto", "max_epochs": -1, "max_steps": steps},
            **{"min_epochs": None, "min_steps": None, "log_every_n_steps": 1},
            **{"limit_val_batches": 2, "limit_test_batches": 0},
        }
        saving = {"every_n_train_steps": max(steps // 4, 1), "every_n_epochs": None}
        checkpoint = {
            "_target_": "lmkit.training.callbacks.Checkpoint",
            "monitor": None,
            **saving,
        }
        return config | {
            **{"outputs": str(self.outputs), "name": "verify", "restarts": 0, "logger": {}},
            "callbacks": {"checkpoint": checkpoint},
        }


@contextmanager
def _trials(config: Mapping[str, Any]) -> Iterator[Trials]:
    """Trials in a temporary directory, which use the stores that are prepared already."""
    outputs = Path(tempfile.mkdtemp(prefix="lmkit-verify-"))
    try:
        (outputs / ".cache").symlink_to(Path(config["outputs"]).absolute() / ".cache")
        yield Trials(outputs, config)
    finally:
        shutil.rmtree(outputs)


def _failed(code: int, err: str) -> Exception:
    """The error to raise for a failed training, with the training's own message if it has one."""
    if not (message := told_error(err)):
        return RuntimeError(f"a training failed, exit code {code}:\n{err}")
    # Its directory is about to be removed, so it cannot be resumed.
    message = f"a training failed: {message.partition(', then go on with: ')[0]}"
    return UserError(message) if code == 2 else ResultError(message, None, code)


def _killed(trials: Trials, steps: int) -> Finding:
    """killed and resumed"""
    whole, killed = trials.run("whole", steps), trials.run("cut", steps, kill=True)
    same_rows = _rows(whole) == _rows(killed)
    one, other = (_weights(run) for run in (whole, killed))
    same_weights = one.keys() == other.keys() and all(
        torch.equal(one[name], other[name]) for name in one
    )
    measured = f"{steps} steps: weights {_same(same_weights)}, metrics.jsonl {_same(same_rows)}"
    return Finding("kill -9 and resume change nothing", same_rows and same_weights, measured)


def _processes(trials: Trials, steps: int) -> Finding:
    """two processes"""
    promise = "one process or two, the same losses"
    lanes = trials.config["data"]["batch_size"]
    if lanes % 2:
        return Finding(promise, None, f"data.batch_size={lanes} does not divide by 2")
    one, two = trials.run("whole", steps), trials.run("two", steps, processes=2)
    apart = [abs(a - b) for a, b in zip(_losses(one), _losses(two), strict=True)]
    near = max(apart[:FIRST]) <= NEAR
    first = f"at most {max(apart[:FIRST]):.1e} nats apart in {FIRST} steps"
    return Finding(promise, near, f"{first}, {apart[-1]:.1e} at last")


def _batches(trials: Trials, steps: int) -> Finding:
    """documents alone and in batches"""
    run = Run(trials.outputs / "verify" / "whole")
    config = run.config()
    trained = TrainedModel.load(run, config, "last")
    stores = make_data(config).prepared.stores
    store = stores.get("valid", stores["train"])
    text = _beginning(store)
    alone, together = (
        _nll(trained, text, num_lanes, positions) for num_lanes, positions in ((1, 4096), (7, 91))
    )
    measured = f"{text.num_tokens:,} tokens: {alone:.6f} in 1 lane, {together:.6f} in 7 by 13"
    return Finding(
        "documents alone or in any batch, the same nll", abs(alone - together) <= NEAR, measured
    )


def _loads(trials: Trials, steps: int) -> Finding:
    """the checkpoint"""
    path = latest_checkpoint(trials.outputs / "verify" / "cut" / "checkpoints")
    assert path is not None
    reason = damage(path)
    load_checkpoint(path)  # weights_only: raises for anything but plain values and tensors
    measured = reason or f"{path.stat().st_size:,} bytes agree with the SHA-256 of the manifest"
    return Finding("a checkpoint holds plain values alone, undamaged", reason is None, measured)


def _beginning(store: Any) -> Text:
    """The first documents of a store, about NUM_TOKENS tokens."""
    number = max(int((store.document_ends <= NUM_TOKENS).sum()), 1)
    ends = store.document_ends[:number].astype("int64")
    return Text(store.tokens[: ends[-1]].astype("int64"), ends, ends, 0, 0)


def _nll(trained: TrainedModel, text: Text, num_lanes: int, positions: int) -> float:
    loader = trained.loader(text, "document", min(num_lanes, text.num_documents), positions)
    *_, (nll_sum, num_tokens) = trained.nll_sums(loader)
    return nll_sum / num_tokens


def _rows(run: Run) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl without values that depend on the clock."""
    lines = (run.path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return [{key: row[key] for key in row if not TIMES.search(key)} for row in rows]


def _losses(run: Run) -> list[float]:
    losses = ("train/nll", "train/sampled_nll")  # the one that the head is trained on
    return [row[key] or math.nan for row in _rows(run) for key in losses if key in row]


def _weights(run: Run) -> dict[str, torch.Tensor]:
    """The last weights, and their average if there is one."""
    checkpoint = _last(run)
    averages = checkpoint.get(AVERAGED, {})
    return checkpoint["state_dict"] | {f"{AVERAGED}.{name}": averages[name] for name in averages}


def _last(run: Run) -> dict[str, Any]:
    checkpoint = load_checkpoint(run.path / "checkpoints" / "last.ckpt")
    if not all(value.isfinite().all() for value in checkpoint["state_dict"].values()):
        raise UserError(
            "the training diverges within these steps: weights that are not finite cannot be "
            "compared; lower optimizer.lr or steps"
        )
    return checkpoint


def _same(equal: bool) -> str:
    return "equal bit for bit" if equal else "DIFFER"
