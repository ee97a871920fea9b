"""`lmkit import`: a language model of another program as a run of lmkit's."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor, nn

from lmkit.assembly import build_model
from lmkit.config.check import check
from lmkit.config.compose import compose
from lmkit.errors import UserError
from lmkit.foreign import (
    Parameters,
    Unit,
    collect,
    foreign_tokenizer,
    held_vocabulary,
    identify,
    is_arpa,
    read,
    read_arpa,
    read_exported,
    read_vocabulary,
    settings,
    start_id,
    weights,
)
from lmkit.overrides import key_of, names
from lmkit.run import IMPORTED, Run
from lmkit.run.checkpoints import AtomicCheckpointIO
from lmkit.system.files import strict_json
from lmkit.system.regular_file import opened
from lmkit.tokenizer import Characters, Tokenizer, Word
from lmkit.training.summary import num_parameters

log = logging.getLogger(__name__)


def import_model(
    file: str,
    config: Mapping[str, Any],
    overrides: Sequence[str],
    *,
    vocabulary: str | None = None,
    embedding: str | None = None,
    rnn: str | None = None,
    output: str | None = None,
    bos: str | None = None,
    eos: str | None = None,
    unk: str | None = None,
    unit: Unit | None = None,
    nonlinearity: Literal["tanh", "relu"] | None = None,
) -> dict[str, Any]:
    """Make a run of a language model that another program has trained.

        lmkit import model.pt vocabulary=vocab.txt name=theirs
        lmkit import 5gram.arpa.gz name=kenlm
        lmkit import lm.pth vocabulary=config.yaml eos="<sos/eos>" embedding=lm.encoder

    FILE: safetensors, or what torch.save has written, a module, a state dict or a checkpoint, of
    PyTorch's nn.LSTM, nn.GRU or nn.RNN; n-grams as ARPA, also as .gz, which say all of what follows
    themselves; or a directory of lmkit export. Nothing in it is run.
    vocabulary: a text with a word in each line (or a word and its id), JSON, YAML, tokenizer.json
    or a file of torch.save; not needed for models of Flair and REINVENT, which hold theirs.
    embedding: the beginning of the name of its weight, where it is not clear which it is.
    rnn: the beginning of the names of the recurrent parameters, where there are others.
    output: the beginning of the names of its weight and bias, where it is not clear.
    bos: the word before which a text begins, if that is neither eos nor has a usual name.
    eos: the word that ends a sentence, and before which a text begins, if it has an unusual name.
    unk: the word that stands for unknown ones, if it has an unusual name.
    unit: what a token is, word, character or smiles (an atom, a bond, ..); found out unless given.
    nonlinearity: of an nn.RNN, which a state dict does not say.
    config: name, run_id, outputs and data are used, and what computes with the run later
    """
    path = Path(file).expanduser()
    for line in overrides:
        if key_of(line).partition(".")[0] in ("model", "head", "tokenizer"):
            raise UserError(f"{line}: {path} says what the model is; leave it out")
    said = {"bos": bos, "eos": eos, "unk": unk, "unit": unit, "nonlinearity": nonlinearity}
    layout = {"embedding": embedding, "rnn": rnn, "output": output}
    counted = is_arpa(path)
    if path.is_dir() or counted:
        theirs = _arpa(path, overrides) if counted else _exported(path)
        given = {"vocabulary": vocabulary, **said, **layout}
        if named := [key for key, value in given.items() if value is not None]:
            raise UserError(f"{named[0]}=: {path} says it itself; leave it out")
    else:
        theirs = _foreign(path, vocabulary, layout, said)
    own = import_model.__kwdefaults__ or {}
    kept = [line for line in overrides if key_of(line) not in own]
    # In full precision, as what the other program says of a text, unless the user wants another.
    lines = ["name=imported", "trainer.precision=32-true", *kept, *theirs.lines]
    composition = compose(lines)
    composition.config |= theirs.nodes
    config, _ = check(composition, trains=False)
    run = Run.named(config["outputs"], config["name"], config["run_id"])
    if (run.path / "config.yaml").exists():
        raise UserError(f"{run.path} is a run already: give another run_id")
    module = _module(path, config, theirs)
    _write(run, config, overrides, theirs.tokenizer, module, theirs.origin)
    result = {
        "run": str(run.path),
        "model": config["model"]["_target_"].rpartition(".")[2],
        "words": theirs.tokenizer.vocabulary_size,
        **theirs.origin,
    }
    _show(run, module, result)
    return result


@dataclass(frozen=True)
class Theirs:
    """A model of another program, in lmkit's terms.

    lines, nodes: what the config says of it. weights: by their names in lmkit. origin: for the
    record.
    """

    lines: list[str]
    nodes: dict[str, Any]
    tokenizer: Tokenizer
    weights: dict[str, Tensor]
    origin: dict[str, Any]


def _foreign(
    path: Path, vocabulary: str | None, layout: Mapping[str, str | None], said: Mapping[str, Any]
) -> Theirs:
    """The model in a file, with its vocabulary; layout and said: what the user says of them."""
    held = _read(path)
    names = None if vocabulary is None else Path(vocabulary).expanduser()
    tokens = held_vocabulary(held, path) if names is None else read_vocabulary(names)
    if tokens is None:
        raise UserError("vocabulary=FILE is missing: the words of the model's ids, in their order")
    given = {key: said[key] or getattr(tokens, key) for key in ("bos", "eos", "unit")}
    tokens = replace(tokens, **given)
    with _about(path):
        found = identify(collect(held), layout)
    if found.kind == "elman":
        found = _with_nonlinearity(path, found, said["nonlinearity"])
    elif said["nonlinearity"]:
        raise UserError(f"nonlinearity={said['nonlinearity']}: {path} is no nn.RNN; leave it out")
    tokenizer = foreign_tokenizer(tokens, len(found.embedding), said["unk"])
    start = start_id(tokens, tokenizer)
    found = found.beginning_after(start, tokenizer.eos_id)
    with _about(path):
        lines = [*settings(found), f"tokenizer={_option(tokenizer)}"]
    origin: dict[str, Any] = {**_origin(path), "vocabulary": _origin(tokens.where)}
    if start != tokenizer.eos_id:
        origin["start"] = tokens.tokens[start]
    return Theirs(lines, {}, tokenizer, weights(found), {**origin, "parameters": lines})


def _with_nonlinearity(path: Path, found: Parameters, said: Any) -> Parameters:
    """The nn.RNN with what the user says of it, or a warning where nobody says it."""
    if said and found.nonlinearity not in (None, said):
        raise UserError(f"nonlinearity={said}: {path} says {found.nonlinearity}; leave it out")
    if not (said or found.nonlinearity):
        log.warning("%s does not say its nonlinearity: taking tanh; nonlinearity=relu if not", path)
    return replace(found, nonlinearity=said or found.nonlinearity)


def _arpa(path: Path, overrides: Sequence[str]) -> Theirs:
    """The n-grams in an ARPA file; each line is a sentence, unless the user says otherwise."""
    found = read_arpa(path)
    lines = ["model=ngram", f"model.order={found.order}", "tokenizer=word"]
    if not names(overrides, "data.protocol"):
        lines.append("data.protocol=sentence")
    origin = {**_origin(path), "num_ngrams": found.sizes, "parameters": lines}
    return Theirs(lines, {}, found.tokenizer, found.weights, origin)


def _exported(path: Path) -> Theirs:
    """The model in a directory of `lmkit export`."""
    found = read_exported(path)
    lines = [f"tokenizer={_option(found.tokenizer)}", f"data.protocol={found.protocol}"]
    nodes = {"model": found.model, "head": found.head}
    what = f"model={found.model.get('_target_')}"
    origin = {**_origin(path / "model.safetensors"), "parameters": [what, *lines]}
    return Theirs(lines, nodes, found.tokenizer, found.weights, origin)


def _read(path: Path) -> Any:
    try:
        return read(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None


@contextmanager
def _about(path: Path) -> Iterator[None]:
    """Names the file in what is wrong with the model in it."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _option(tokenizer: Tokenizer) -> str:
    """The option of the config group `tokenizer`; one that no option makes is the run's own."""
    return tokenizer.name if isinstance(tokenizer, Word | Characters) else "stored"


def _module(path: Path, config: Mapping[str, Any], theirs: Theirs) -> nn.Module:
    """lmkit's model and head of a config with the parameters of a file."""
    model, head = build_model(config, theirs.tokenizer.vocabulary_size)
    module = nn.ModuleDict({"model": model, "head": head})
    try:
        module.load_state_dict(theirs.weights)
    except RuntimeError as error:  # it names every parameter of a wrong shape
        told = "; ".join(line.strip() for line in str(error).splitlines()[1:])
        raise UserError(f"{path}: {told}") from None
    wrong = [name for name, each in module.named_parameters() if not torch.isfinite(each).all()]
    if wrong:
        log.warning("%s has values that are not finite: in %s", path, ", ".join(wrong))
    return module


def _origin(path: Path) -> dict[str, str]:
    """Where a file came from, for the record."""
    with opened(path) as file:
        return {
            "file": str(path.absolute()),
            "sha256": hashlib.file_digest(file, "sha256").hexdigest(),
        }


def _write(
    run: Run,
    config: Mapping[str, Any],
    overrides: Sequence[str],
    tokenizer: Tokenizer,
    module: nn.Module,
    origin: Mapping[str, Any],
) -> None:
    """Write the run; nothing of it is left if that fails."""
    there = run.path.exists()
    run.check(config)
    try:
        run.start(config, overrides, sys.argv)
        tokenizer.save(run.path)
        run.write(IMPORTED, dict(origin))
        run.write("summary.json", {"num_parameters": num_parameters(module)})
        identity = {"config": json.loads(strict_json(config)), "tokenizer": tokenizer.hash()}
        checkpoint = {"state_dict": module.state_dict(), "global_step": 0, "epoch": 0}
        best = run.path / "checkpoints" / "best.ckpt"
        AtomicCheckpointIO(identity).save_checkpoint(checkpoint, best)
        best.with_name("last.ckpt").symlink_to(best.name)
        run.write_status("finished")
    except BaseException:
        if not there:
            shutil.rmtree(run.path, ignore_errors=True)
        raise
    finally:
        run.release()


def _show(run: Run, module: nn.Module, result: Mapping[str, Any]) -> None:
    """Print what was found, and commands to use it."""
    console = Console()
    table = Table(box=None, show_header=False)
    for line in result["parameters"]:
        table.add_row(*line.split("="))
    table.add_row("words", f"{result['words']:,}")
    if "start" in result:
        table.add_row("a text begins after", result["start"])
    table.add_row("parameters", f"{num_parameters(module):,}")
    console.print(table)
    console.print(Text(f"{'run:':<12}{run.path}"), soft_wrap=True)
    for what, command in (("surprisal:", "score"), ("perplexity:", "evaluate")):
        line = f"{what:<12}{run.command(command)} file=TEXT"
        console.print(Text(line), soft_wrap=True)
