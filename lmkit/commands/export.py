"""`lmkit export`: a trained model for other programs."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from torch import nn

from lmkit.errors import UserError
from lmkit.export import Contract, write_arpa, write_huggingface, write_onnx, write_safetensors
from lmkit.inference import Text, TrainedModel
from lmkit.inference.identity import recorded
from lmkit.inference.milestones import ALL, milestones
from lmkit.inference.text import read_text
from lmkit.run import IMPORTED, Run, no_checkpoint
from lmkit.run.checkpoints import read_manifest
from lmkit.training.summary import num_parameters


def export(
    run: Annotated[Run, no_checkpoint],
    *,
    path: str,
    format: Literal["huggingface", "onnx", "safetensors", "arpa"] = "huggingface",
    checkpoint: str = "best",
    contract: Contract = "states",
    quantize: Literal["int8"] | None = None,
    file: str | None = None,
) -> dict[str, Any]:
    """Write a run's model for other programs, which need no lmkit.

        lmkit export latest path=model
        lmkit export latest path=model format=onnx quantize=int8 file=text.txt

    format: huggingface, a directory that transformers opens with trust_remote_code=True; onnx, with
    tokens.txt, compared with PyTorch when it is written; safetensors, weights and what they are of;
    arpa, the text file of n-grams that KenLM and SRILM read.
    path: the directory to make, or the file of format=arpa, compressed if it ends with .gz; what is
    there already is never touched.
    checkpoint: best, last or another of the run's; all: each that callbacks.milestones kept, or
    else each that there is, as PATH/chck_10M and so on.
    contract: of an ONNX file: states, tokens and a state in, log-probabilities and a state out;
    sherpa, x, h0 and c0 of sherpa-onnx's online language models; sherpa_rescore, x and x_lens of
    its offline ones.
    quantize: int8, a second ONNX file of 8 bits.
    file: a text on which is measured what that loses.
    """
    config = run.config()
    if format != "onnx" and (contract != "states" or quantize or file):
        raise UserError("contract, quantize and file are for format=onnx: leave them out")
    directory = Path(path).expanduser().absolute()
    if checkpoint == ALL:
        settings: Any = {"contract": contract, "quantize": quantize, "file": file}
        one = partial(export, run, format=format, **settings)
        if directory.exists():
            raise UserError(f"path={path} is there already: give another")
        names = [point.name for point in milestones(run)]
        each = [one(path=str(directory / name), checkpoint=name) for name in names]
        return {"path": str(directory), "checkpoints": dict(zip(names, each, strict=True))}
    trainer = {**config["trainer"], "accelerator": "cpu", "precision": "32-true"}
    trained = TrainedModel.load(run, {**config, "trainer": trainer}, checkpoint)
    if format == "arpa":
        return _arpa(trained, directory)
    if trained.model.counted:
        raise UserError(
            f"format={format} knows networks, and the model is {type(trained.model).__name__}: "
            "set format=arpa"
        )
    text = None if file is None else Text.of(read_text(None, file), trained.tokenizer)
    facts = _facts(run, config, trained)
    result: dict[str, Any] = {"path": str(directory), "format": format}
    if format == "huggingface":
        write_huggingface(trained, facts, directory)
        print(f"{directory}: AutoModelForCausalLM.from_pretrained(.., trust_remote_code=True)")
    elif format == "safetensors":
        write_safetensors(trained, facts, directory)
        print(f"{directory}: model.safetensors and lmkit.json; lmkit import {directory}")
    else:
        result |= write_onnx(trained, directory, contract, quantize, text)
        print(f"{directory}: model.onnx differs from PyTorch by {result['difference']:.1e}")
        if quantize:
            before, after = result["perplexity"], result["int8_perplexity"]
            print(f"model.int8.onnx: perplexity {after:,.2f}, {before:,.2f} before")
    return {**result, "num_parameters": facts["num_parameters"]}


def _arpa(trained: TrainedModel, path: Path) -> dict[str, Any]:
    sizes = write_arpa(trained, path)
    print(f"{path}: {' + '.join(f'{size:,}' for size in sizes)} n-grams; lmkit import {path}")
    return {"path": str(path), "format": "arpa", "num_ngrams": sizes}


def _facts(run: Run, config: dict[str, Any], trained: TrainedModel) -> dict[str, Any]:
    """What an exported model says of where it comes from."""
    assert trained.checkpoint is not None
    return {
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


def _data(run: Run, config: dict[str, Any]) -> dict[str, Any]:
    """What the model was trained on; paths are left out, as they say nothing elsewhere."""
    if (run.path / IMPORTED).exists():
        return {"source": "Trained by another program, and imported.", "splits": {}}
    data = recorded(run)
    source = config["data"]["_target_"].rpartition(".")[2]
    splits = {name: each for name, each in data.get("splits", {}).items() if "num_tokens" in each}
    return {"source": f"lmkit's source `{source}`.", "splits": splits}
