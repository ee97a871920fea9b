"""The parts of benchmarks/gpu.sh: runs commands and gathers their figures in one JSON.

    python benchmarks/gpu.py PART [path=DIR] [json=FILE] [work=DIR] [seconds=600] [again=false]
        [accelerator=cuda] [shapes=200,650_tied,awd,1500_tied] [precisions=bf16-mixed,32-true]
        [steps=200] [rounds=5] [curve_seconds=600] [recipe=pytorch_examples_200_tied]

tests: tests/journeys/test_cuda.py. processes: two processes on one card over gloo, and one over
NCCL, have the losses of one process. resume: a run that is killed and resumed is bit for bit one
that was not. speed: benchmarks/train.py for each shape and precision. curve: the learning curve of
pytorch_examples_650_tied over `curve_seconds` of training, which each call goes on with. recipe: a
whole reproduction on the card, which each call goes on with, too, then what a cache makes of it.

A call stops what would take more than `seconds`; the next one leaves out what the JSON has already,
unless again=true. accelerator=cpu and shapes=tiny try the parts out where there is no card.
"""

from __future__ import annotations

import json
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from measure import settings
from session import RESERVE, ROOT, Session, Settings, TooLongError

sys.path.append(str(ROOT / "tests" / "support"))

from journey import assert_same_state, last, rows

PYTHON = sys.executable
GLOO = "{_target_: lightning.pytorch.strategies.DDPStrategy, process_group_backend: gloo}"


def tests(session: Session) -> bool:
    """How many tests passed, failed and were skipped."""
    report = session.work / "tests.xml"
    command = [
        *(PYTHON, "-m", "pytest", "-W", "default", "-n", "4", "--dist", "load", "-q"),
        *(f"--junitxml={report}", "tests/journeys/test_cuda.py"),
    ]

    def counts() -> dict[str, Any]:
        failed = None
        try:
            session.run(command)
        except subprocess.CalledProcessError as error:
            failed = error
        (suite,) = ET.parse(report).getroot()
        found: dict[str, Any] = {
            key: int(suite.attrib[key]) for key in ("tests", "failures", "errors", "skipped")
        }
        found["seconds"] = {
            case.attrib["name"]: float(case.attrib["time"]) for case in suite.iter("testcase")
        }
        if failed:
            failed.output = f"{found}\n{failed.output}"
            raise failed
        return found

    return session.figure("tests", [command], counts)


def training(session: Session, *more: str) -> list[str]:
    """Arguments of a training of the first shape's sizes on WikiText, of some steps."""
    given = session.given
    return [
        *("data=wikitext", f"data.path={Path(given.path).resolve()}", "name=gpu"),
        "experiment=pytorch_examples_650_tied",
        *(f"trainer.accelerator={given.accelerator}", "trainer.limit_test_batches=0"),
        *tiny(given),
        *more,
    ]


def tiny(given: Settings) -> list[str]:
    if given.shapes != "tiny":
        return []
    return ["model.embedding_size=16", "model.hidden_size=16", "data.batch_size=4", "data.bptt=8"]


def fresh(session: Session, name: str, experiment: str = "gpu") -> Path:
    """The run directory of a name, without what an earlier call has left of it."""
    run = session.work / "outputs" / experiment / name
    shutil.rmtree(run, ignore_errors=True)
    return run


def processes(session: Session) -> bool:
    """Losses over gloo, of two processes on one card, and over NCCL, against those of one."""
    given = session.given
    steps = min(given.steps, 40)
    length = [f"trainer.max_steps={steps}", "trainer.limit_val_batches=0", "scheduler=constant"]
    arguments = training(session, *length, "trainer.log_every_n_steps=1")
    arguments += ["trainer.precision=32-true", "optimizer.lr=1"]  # rounding grows slowly

    def losses(name: str, launches: list[list[str]]) -> list[float]:
        run = fresh(session, name)
        if len(launches) == 1:
            session.run([*launches[0], f"run_id={name}"], cwd=session.work)
        else:
            both = " & ".join(shlex.join([*launch, f"run_id={name}"]) for launch in launches)
            # Each process's exit code counts.
            script = f"{both} & for job in $(jobs -p); do wait $job || exit 1; done"
            session.run(["bash", "-c", script], cwd=session.work)
        return [row["train/nll"] for row in rows(run) if "train/nll" in row]

    alone = [[PYTHON, "-m", "lmkit", "train", *arguments]]
    rendezvous = ["--master-addr=127.0.0.1", f"--master-port={free_port()}"]
    several = ["trainer.num_nodes=2", "trainer.devices=1", f"trainer.strategy={GLOO}"]
    launch = [PYTHON, "-m", "torch.distributed.run"]
    cases = {
        # As two machines, each of whose first card is the same one.
        "processes, two over gloo": [
            [
                *(*launch, "--nnodes=2", "--nproc-per-node=1", f"--node-rank={rank}"),
                *(*rendezvous, "-m", "lmkit", "train", *arguments, *several),
            ]
            for rank in range(2)
        ]
    }
    if given.accelerator == "cuda":
        one = [*launch, "--standalone", "--nproc-per-node=1", "-m", "lmkit", "train", *arguments]
        cases["processes, one over NCCL"] = [[*one, "trainer.strategy=ddp"]]

    def compared(name: str, launches: list[list[str]]) -> dict[str, Any]:
        reference = losses("alone", alone)
        found = losses(name.rpartition(" ")[2].lower(), launches)
        assert len(found) == len(reference) == steps
        pairs = zip(found, reference, strict=True)
        largest = max(abs(one - other) for one, other in pairs)
        assert largest < 1e-3, f"losses differ by {largest}"
        return {"largest_difference": largest, "losses": found, "alone": reference}

    done = [
        session.figure(name, [*alone, *launches], lambda name=name, to=launches: compared(name, to))
        for name, launches in cases.items()
    ]
    return all(done)


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


def resume(session: Session) -> bool:
    """A run that is killed and resumed, against one that is not."""
    steps = session.given.steps
    every = max(steps // 10, 1)
    arguments = training(
        session,
        *(f"trainer.max_steps={steps}", "trainer.limit_val_batches=2"),
        *("trainer.precision=bf16-mixed", f"trainer.log_every_n_steps={every}"),
        f"callbacks.checkpoint.every_n_train_steps={every}",
    )
    whole, killed = (
        [PYTHON, "-m", "lmkit", "train", *arguments, f"run_id={name}"]
        for name in ("whole", "killed")
    )
    again = [PYTHON, "-m", "lmkit", "resume", "killed"]

    def compared() -> dict[str, Any]:
        runs = [fresh(session, name) for name in ("whole", "killed")]
        session.run(whole, cwd=session.work)
        at = kill_after(session, killed, runs[1], rows_before=4)
        session.run(again, cwd=session.work)
        assert rows(runs[0]) == rows(runs[1]), "rows of metrics.jsonl"
        assert_same_state(last(runs[0]), last(runs[1]))
        return {"killed_after_step": at, "steps": steps, "rows": len(rows(runs[0]))}

    return session.figure("resume", [whole, killed, again], compared)


def kill_after(session: Session, command: list[str], run: Path, rows_before: int) -> int:
    """Kill a training, without warning, when it has so many rows; the step of the last one."""
    print(f"$ {shlex.join(command)} (killed)", flush=True)
    process = subprocess.Popen(
        command, cwd=session.work, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    metrics = run / "metrics.jsonl"
    try:
        while not (metrics.exists() and metrics.read_bytes().count(b"\n") >= rows_before):
            if process.poll() is not None:
                raise subprocess.CalledProcessError(process.returncode, command, "ended too early")
            if session.left() <= RESERVE:
                raise TooLongError
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    return int(rows(run)[-1]["step"])


def speed(session: Session) -> bool:
    """Tokens per second, share of the GEMM peak and memory, beside the plain loop."""
    given, done = session.given, []
    for shape in given.shapes.split(","):
        for precision in given.precisions.split(","):
            file = session.work / f"speed-{shape}-{precision}.json"
            command = [
                *(PYTHON, "benchmarks/train.py", f"path={given.path}", f"shape={shape}"),
                *(f"precision={precision}", f"accelerator={given.accelerator}"),
                *(f"steps={given.steps}", f"rounds={given.rounds}", f"json={file}"),
            ]

            def figures(command: list[str] = command, file: Path = file) -> Any:
                file.unlink(missing_ok=True)
                print(session.run(command), flush=True)
                return json.loads(file.read_text(encoding="utf-8"))

            done.append(session.figure(f"speed, {shape}, {precision}", [command], figures))
    return all(done)


def curve(session: Session) -> bool:
    """The rows of a training that each call goes on with, for `curve_seconds` in all."""
    given = session.given
    run = session.work / "outputs" / "gpu" / "curve"
    if given.again:
        fresh(session, "curve")
    arguments = training(session, "trainer.precision=bf16-mixed", "trainer.max_epochs=40")
    arguments += ["trainer.log_every_n_steps=50", "run_id=curve"]
    command = [PYTHON, "-m", "lmkit", "train", *arguments]
    if (run / "config.yaml").exists():
        command = [PYTHON, "-m", "lmkit", "resume", "curve"]

    def trained() -> float:
        """Seconds of training so far."""
        there = (run / "metrics.jsonl").exists()
        lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines() if there else []
        return float(json.loads(lines[-1])["seconds"]) if lines else 0.0

    def values() -> dict[str, Any]:
        code = go_on(session, command, "curve", lambda: trained() >= given.curve_seconds)
        if trained() < given.curve_seconds and code:
            raise TooLongError
        return {"seconds_of_training": trained(), "rows": all_rows(run)}

    before = session.document["figures"].get("curve", {}).get("commands", [])
    earlier = [] if given.again else [shlex.split(each) for each in before]
    done = session.figure("curve", [*earlier, command], values)
    if not done:
        session.document["figures"]["curve"]["values"] = {"rows": all_rows(run)}
        session.save()
    return done


def recipe(session: Session) -> bool:
    """A recipe's record: whole training and evaluation against the published numbers; then the
    evaluation with a continuous cache."""
    given = session.given
    run = session.work / "outputs" / given.recipe / "seed-1"
    if given.again:
        fresh(session, run.name, given.recipe)
    small = tiny(given)
    command = [
        *(PYTHON, "-m", "lmkit", "reproduce", given.recipe, "callbacks.samples=null"),
        *(f"data.path={Path(given.path).resolve()}", f"trainer.accelerator={given.accelerator}"),
        *("trainer.devices=1", f"trainer.precision={given.precisions.split(',')[0]}"),
        *(["trainer.max_epochs=2", *small] if small else []),
    ]

    def values() -> dict[str, Any]:
        record = run / "reproduction.json"
        try:
            go_on(session, command, "recipe", lambda: False)
        except subprocess.CalledProcessError:
            if not record.exists():  # else the verdict was fail
                raise
        if not record.exists():
            raise TooLongError
        return {"record": json.loads(record.read_text("utf-8")), "rows": all_rows(run)}

    name = f"recipe, {given.recipe}"
    if not session.figure(name, [command], values):
        return False
    evaluate = [
        *(PYTHON, "-m", "lmkit", "evaluate", str(run), "protocol=stream", "cache=2000"),
        *("tune=true", "format=json", f"trainer.accelerator={given.accelerator}"),
    ]
    return session.figure(
        f"{name}, cache", [evaluate], lambda: json.loads(session.run(evaluate, cwd=session.work))
    )


def go_on(session: Session, command: list[str], name: str, enough: Callable[[], bool]) -> int:
    """The exit code of a training, which is stopped, and saves its state, when there is enough of
    it or no time left."""
    print(f"$ {shlex.join(command)}", flush=True)
    with (session.work / f"{name}.log").open("a", encoding="utf-8") as log:
        process = subprocess.Popen(command, cwd=session.work, stdout=log, stderr=log)
        while process.poll() is None and session.left() > 2 * RESERVE and not enough():
            time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        code = process.wait(timeout=max(session.left(), RESERVE))
    if code not in (0, 128 + signal.SIGTERM, -signal.SIGTERM):  # the last: it had not begun
        text = Path(log.name).read_text(encoding="utf-8")
        raise subprocess.CalledProcessError(code, command, text)
    return code


def all_rows(run: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl, with their times."""
    metrics = run / "metrics.jsonl"
    lines = metrics.read_text(encoding="utf-8").splitlines() if metrics.exists() else []
    return [json.loads(line) for line in lines]


PARTS = {
    "tests": tests,
    "processes": processes,
    "resume": resume,
    "speed": speed,
    "curve": curve,
    "recipe": recipe,
}


def main() -> int:
    part = sys.argv.pop(1) if len(sys.argv) > 1 else ""
    given = settings(Settings)
    if part not in PARTS or (part != "tests" and not given.path):
        print(f"{' or '.join(PARTS)}, with path=DIR for all but tests; not {part!r}")
        return 2
    if given.accelerator == "cuda" and not torch.cuda.is_available():
        print("there is no GPU here; accelerator=cpu shapes=tiny tries the parts out")
        return 2
    return 0 if PARTS[part](Session(given)) else 1


if __name__ == "__main__":
    raise SystemExit(main())
