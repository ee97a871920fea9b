"""The cost of a training: its machines, from the records of the run's starts."""

import json

import pytest
import yaml

from lmkit.recipes.cost import cost
from lmkit.run import Run

SEVERAL = {"processor": "Xeon", "num_cpus": 16, "gpus": ["NVIDIA H200"] * 4}
LAPTOP = {"processor": "Core", "num_cpus": 2, "gpus": []}


def run_of(place, trainer, starts, changes):
    """A run's records after its starts on some hardware, whose resumes changed keys of trainer; a
    start whose hardware is None has found its environment as the one before. The first has torch
    2.1, the second 2.2."""
    run = Run.named(place, "some", "run")
    run.path.mkdir(parents=True)
    first, *resumed = [
        {"hardware": hardware, "versions": {"torch": f"2.{n}"}}
        for n, hardware in enumerate(starts, 1)
    ]
    entries = [
        {"at": f"2026-01-0{n}T00:00:00.005", **each}
        for n, each in enumerate(resumed, 2)
        if each["hardware"]
    ]
    (run.path / "environment.json").write_text(json.dumps({**first, "resumed": entries}))
    record = [
        {
            "resumed": f"2026-01-0{n}T00:00:00.001",
            "changed": {f"trainer.{k}": v for k, v in c.items()},
        }
        for n, c in enumerate(changes, 2)
    ]
    (run.path / "overrides.yaml").write_text(yaml.safe_dump(["trainer=gpu", *record]))
    (run.path / "config.yaml").write_text(yaml.safe_dump({"trainer": trainer}))
    summary = {"seconds": 90.0, "tokens": 900, "tokens_per_second": 10.0}
    (run.path / "summary.json").write_text(json.dumps(summary))
    return run


@pytest.mark.parametrize(
    ("accelerator", "devices", "num_nodes", "machine"),
    [
        ("cpu", 1, None, "Xeon, 16 cores"),  # its GPUs were not used
        ("cuda", 1, None, "NVIDIA H200"),
        ("cuda", 3, None, "3 x NVIDIA H200"),
        ("cuda", [0, 2], None, "2 x NVIDIA H200"),
        ("cuda", 4, 2, "8 x NVIDIA H200"),
    ],
)
def test_a_machine_is_what_the_trainer_used_of_it(
    tmp_path, accelerator, devices, num_nodes, machine
):
    trainer = {"accelerator": accelerator, "devices": devices}
    trainer |= {"num_nodes": num_nodes} if num_nodes else {}
    found = cost(run_of(tmp_path, trainer, [SEVERAL], []), "bf16-mixed")
    assert (found["hardware"], found["tokens_per_second"]) == (machine, 10.0)


def test_each_machine_is_named_with_the_trainer_of_its_time(tmp_path):
    changes = [
        {"devices": [4, 1], "num_nodes": [2, "absent"]},
        {"accelerator": ["cuda", "cpu"]},
        {"devices": [1, 2], "accelerator": ["cpu", "cuda"]},
    ]
    trainer = {"accelerator": "cuda", "devices": 2}
    run = run_of(tmp_path, trainer, [SEVERAL, SEVERAL, LAPTOP, SEVERAL], changes)
    found = cost(run, "bf16-mixed")
    assert found["hardware"] == (
        "8 x NVIDIA H200, then NVIDIA H200, then Core, 2 cores, then 2 x NVIDIA H200"
    )
    assert found["tokens_per_second"] is None


@pytest.mark.parametrize(
    ("starts", "trainer", "changes", "hardware"),
    [
        (
            *([SEVERAL, None], {"accelerator": "cuda", "devices": 2}, [{"devices": [1, 2]}]),
            "NVIDIA H200, then 2 x NVIDIA H200",
        ),
        (
            *([SEVERAL, None, LAPTOP, None], {"accelerator": "cpu", "devices": 1}),
            [{"devices": [2, 3]}, {"accelerator": ["cuda", "cpu"]}, {"devices": [3, 1]}],
            "2 x NVIDIA H200, then 3 x NVIDIA H200, then Core, 2 cores",
        ),
    ],
)
def test_other_devices_count_also_where_the_environment_is_the_same(
    tmp_path, starts, trainer, changes, hardware
):
    """As with the same command after the config file was edited."""
    found = cost(run_of(tmp_path, trainer, starts, changes), "")
    assert (found["hardware"], found["tokens_per_second"]) == (hardware, None)


def test_starts_on_one_machine_are_one(tmp_path):
    trainer = {"accelerator": "cuda", "devices": 1}
    found = cost(run_of(tmp_path, trainer, [SEVERAL] * 3, [{"precision": ["32-true", "bf16"]}]), "")
    assert (found["hardware"], found["tokens_per_second"]) == ("NVIDIA H200", 10.0)
    assert found["torch"] == "2.3"  # that of the last
