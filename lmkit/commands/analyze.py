"""`lmkit analyze probe`: how far back each kind of model remembers, as one picture."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from lmkit.analysis.memory_probe import chance, check_config, num_correct, predictions, same_size
from lmkit.analysis.memory_probe_picture import STYLES, buckets, draw
from lmkit.assembly import make_data
from lmkit.config.loggers import grouped
from lmkit.config.mistakes import nearest
from lmkit.errors import UserError
from lmkit.inference import TrainedModel
from lmkit.run import Directory, Run, mint_id
from lmkit.system.files import strict_json, write_atomically, write_figure
from lmkit.training.launch import launch


def analyze(
    kind: str, config: dict[str, Any], overrides: list[str], *, context: int = 10
) -> dict[str, Any]:
    """Train window, Elman, GRU and LSTM on the memory probe and draw how far back each knows.

        lmkit analyze probe
        lmkit analyze probe context=5 trainer.max_epochs=4

    The config is conf/probe.yaml; its LSTM says how many parameters each may have. Each is a run
    like any other, beside the picture.
    context: words that the window model sees.
    """
    if kind not in ("probe",):
        raise UserError(f"lmkit analyze {kind}: no such analysis; {nearest(kind, ['probe'])}")
    check_config(config, context)
    identity = config["run_id"] or mint_id()
    directory = Path(config["outputs"]).absolute() / config["name"] / f"{identity}-probe"
    Directory(directory).check_links()
    result = _train_and_measure(config, overrides, context, identity)
    directory.mkdir(parents=True, exist_ok=True)
    result |= {name: str(directory / f"probe.{name}") for name in ("json", "png")}
    write_atomically(directory / "probe.json", strict_json(result, indent=2).encode())
    write_figure(directory / "probe.png", draw(result))
    Console().print(_table(result))
    print(f"picture: {result['png']}\nnumbers: {result['json']}")
    return result


def _train_and_measure(
    config: Mapping[str, Any], overrides: list[str], context: int, identity: str
) -> dict[str, Any]:
    prepared = make_data(dict(config)).prepared
    store = prepared.stores["test"]
    configs = same_size(config, context, prepared.tokenizer.vocabulary_size)
    models = {}
    for number, (name, model_config) in enumerate(configs.items(), start=1):
        print(f"{number}/{len(configs)} {STYLES[name][0]}", file=sys.stderr)
        model_config["run_id"] = f"{identity}-{name}"
        run = Run.named(model_config["outputs"], model_config["name"], model_config["run_id"])
        summary = launch(run, grouped(model_config), overrides)
        counts = num_correct(predictions(TrainedModel.load(run, model_config), store), store)
        models[name] = {
            "run": f"{run.name}/{run.id}",
            "hidden_size": model_config["model"]["hidden_size"],
            "num_parameters": summary["num_parameters"],
            "seconds": summary["seconds"],
            "num_correct": [correct for correct, _ in counts.values()],
            "accuracy": [correct / total for correct, total in counts.values()],
        }
    return {
        "analysis": "probe",
        "split": "test",
        "context": context,
        "chance": chance(int(str(prepared.source["num_countries"]))),
        "distances": list(counts),
        "num_words": [total for _, total in counts.values()],
        "models": models,
    }


def _table(result: Mapping[str, Any]) -> Table:
    models = result["models"]
    table = Table("distance", title="Accuracy at the needed words, on test")
    for name in models:
        table.add_column(STYLES[name][0], justify="right")
    for first, last, row in buckets(result["distances"]):
        total = sum(result["num_words"][row])
        shares = [sum(model["num_correct"][row]) / total for model in models.values()]
        table.add_row(f"{first} to {last} words", *(f"{share:.3f}" for share in shares))
    table.add_section()
    for key in ("num_parameters", "hidden_size", "seconds"):
        label = key.replace("num_", "").replace("_", " ")
        table.add_row(label, *(f"{model[key]:,.0f}" for model in models.values()))
    return table
