"""What the training of a run has cost: time, speed, and the machines that it ran on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import groupby, zip_longest
from typing import Any

from lmkit.run import Run
from lmkit.run.history import flat_at, resumes, stages
from lmkit.system.hardware import num_processes
from lmkit.system.wording import counted


def cost(run: Run, precision: str) -> dict[str, Any]:
    """Seconds, tokens, tokens per second and machines of a training, as plain values.

    A run that has gone on elsewhere has all its machines, in their order. Its tokens per second are
    no machine's speed, so there are none.
    """
    summary = run.read("summary.json")
    environments = stages(run.read("environment.json"))
    machines = [machine for machine, _ in groupby(_machines(run, environments))]
    speed = summary.get("tokens_per_second") if len(machines) == 1 else None
    return {
        **{key: summary.get(key) for key in ("seconds", "tokens")},
        "tokens_per_second": speed,
        "hardware": ", then ".join(machines),
        "torch": environments[-1]["versions"].get("torch"),
        "precision": precision,
    }


def _machines(run: Run, environments: list[dict[str, Any]]) -> Iterator[str]:
    """What the run computed on after each of its starts."""
    now = {"trainer": run.config()["trainer"]}
    record: Any = run.read("overrides.yaml")  # a list
    by_time = {each.get("at", ""): each for each in environments}
    times = sorted({*by_time, *resumes(record)})
    environment = environments[0]
    for time, following in zip_longest(times, times[1:]):
        if time not in by_time and following in by_time:
            continue  # one resume writes its config, then its environment if that is another
        environment = by_time.get(time, environment)
        leaves = flat_at(record, now, time)
        trainer = {key.removeprefix("trainer."): value for key, value in leaves.items()}
        yield _machine(environment["hardware"], trainer)


def _machine(hardware: Mapping[str, Any], trainer: Mapping[str, Any]) -> str:
    gpus = hardware.get("gpus") or []
    if trainer["accelerator"] == "cpu" or not gpus:
        return f"{hardware['processor']}, {counted(hardware['num_cpus'], 'core')}"
    number = num_processes(trainer)
    return gpus[0] if number == 1 else f"{number} x {gpus[0]}"


def in_words(cost: Mapping[str, Any]) -> str:
    """Time, speed and machines in one phrase."""
    parts = []
    if cost["seconds"] is not None:
        hours = cost["seconds"] / 3600
        parts.append(f"{hours:.1f} h" if hours >= 1 else f"{60 * hours:.0f} min")
    if cost["tokens_per_second"] is not None:
        parts.append(f"{cost['tokens_per_second']:,.0f} tokens/s in training")
    return ", ".join([*parts, cost["hardware"], cost["precision"]])
