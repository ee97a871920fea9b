"""`lmkit export`: a trained model for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from torch import nn

from lmkit.export import write_huggingface
from lmkit.inference import TrainedModel
from lmkit.inference.identity import recorded
from lmkit.run import IMPORTED, Run, no_checkpoint
from lmkit.run.checkpoints import read_manifest
from lmkit.training.summary import num_parameters


def export(
    run: Annotated[Run, no_checkpoint],
    *,
    path: str,
    format: Literal["huggingface"] = "huggingface",
    checkpoint: str = "best",
) -> dict[str, Any]:
    """Write a run's model for other programs, which need no lmkit.

        lmkit export latest path=model

    format: huggingface, a directory that transformers opens with trust_remote_code=True.
    path: the directory to make; what is there already is never touched.
    checkpoint: best, last or another of the run's.
    """
    config = run.config()
    trainer = {**config["trainer"], "accelerator": "cpu", "precision": "32-true"}
    trained = TrainedModel.load(run, {**config, "trainer": trainer}, checkpoint)
    assert trained.checkpoint is not None
    facts = {
        "run": f"{run.name}/{run.id}",
        "checkpoint": trained.checkpoint.stem,
        "step": read_manifest(trained.checkpoint).get("step"),
        "protocol": trained.protocol,
        "tokenizer": trained.tokenizer.name,
        "data": _data(run, config),
        "measured": run.read("summary.json"),
        "num_parameters": num_parameters(
            nn.ModuleDict({"model": trained.model, "head": trained.head})
        ),
        "model": config["model"],
        "head": config["head"],
    }
    directory = Path(path).expanduser().absolute()
    write_huggingface(trained, facts, directory)
    print(f"{directory}: AutoModelForCausalLM.from_pretrained(..., trust_remote_code=True)")
    return {"path": str(directory), "format": format, "num_parameters": facts["num_parameters"]}


def _data(run: Run, config: dict[str, Any]) -> dict[str, Any]:
    """What the model was trained on; paths are left out, as they say nothing elsewhere."""
    if (run.path / IMPORTED).exists():
        return {"source": "Trained by another program, and imported.", "splits": {}}
    data = recorded(run)
    source = config["data"]["_target_"].rpartition(".")[2]
    splits = {name: each for name, each in data.get("splits", {}).items() if "num_tokens" in each}
    return {"source": f"lmkit's source `{source}`.", "splits": splits}
