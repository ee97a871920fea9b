"""The initial weights of a run that begins where another run has ended."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lmkit.assembly import build_model
from lmkit.errors import UserError
from lmkit.head import Head
from lmkit.inference.identity import check_own
from lmkit.inference.weights import find_checkpoint
from lmkit.model import LanguageModel
from lmkit.run import Run
from lmkit.run.checkpoints import RAW, evaluated_weights, load_checkpoint, read_manifest
from lmkit.tokenizer import Tokenizer, load_tokenizer

NAME = "init.json"  # where a run says what it began from


def check_init(config: Mapping[str, Any], tokenizer: Tokenizer) -> str:
    """How a run with this config and tokenizer begins, as a sentence; raises UserError if it cannot
    begin as `init` says."""
    with torch.random.fork_rng(devices=[]):
        found = begin(config, *build_model(config, tokenizer.vocabulary_size), tokenizer)
    run, shared = Path(found["run"]), found["shared_tokens"]
    kept = f"{shared:,} of {tokenizer.vocabulary_size:,} tokens have their rows from it"
    step = "" if found["step"] is None else f", step {found['step']:,}"
    more = kept if found["vocabulary"] == "new" else "its vocabulary too"
    return f"it begins with {run.parent.name}/{run.name} ({found['checkpoint']}{step}): {more}"


def begin(
    config: Mapping[str, Any], model: LanguageModel, head: Head, tokenizer: Tokenizer
) -> dict[str, Any]:
    """Load the weights of the run that `init` names, and return where they come from.

    With init_vocabulary=new the rows of embedding and head are kept for tokens that both
    vocabularies have, and are new for all others. Raises UserError if anything does not fit.
    """
    run = Run(Path(config["init"]))
    path = find_checkpoint(run, config["init_checkpoint"])
    check_own(run, path)
    theirs = load_tokenizer(run.path)
    raw = config["init_checkpoint"].endswith(RAW)
    weights = evaluated_weights(load_checkpoint(path), raw=raw)
    module = nn.ModuleDict({"model": model, "head": head})
    weights = {name: value for name, value in weights.items() if name.partition(".")[0] in module}
    shared = tokenizer.vocabulary_size
    if config["init_vocabulary"] == "new":
        pairs = _shared(theirs, tokenizer)
        shared = len(pairs)
        names = ["model.embedding.weight", *(f"head.{name}" for name in head.token_rows or ())]
        weights = _with_rows(weights, module.state_dict(), pairs, names)
    elif theirs.hash() != tokenizer.hash():
        raise UserError(
            f"init={run.path}: it has another vocabulary ({theirs.vocabulary_size:,} tokens) than "
            f"the data ({tokenizer.vocabulary_size:,}); with init_vocabulary=new the rows of "
            "embedding and head are new for tokens that it does not have"
        )
    try:
        module.load_state_dict(weights)
    except RuntimeError as error:  # it names every parameter of a wrong shape
        lines = [line.strip() for line in str(error).splitlines()[1:]]
        shown = " ".join(lines[:2]) + (f" ({len(lines) - 2} more)" if len(lines) > 2 else "")
        raise UserError(f"init={run.path}: its weights do not fit the config: {shown}") from None
    manifest = read_manifest(path)
    return {
        "run": str(run.path),
        "checkpoint": path.stem,
        "step": manifest.get("step"),
        "sha256": manifest.get("sha256"),
        "vocabulary": config["init_vocabulary"],
        "shared_tokens": shared,
    }


def _shared(theirs: Tokenizer, ours: Tokenizer) -> dict[int, int]:
    """From our ids to theirs of the tokens that have the same surface; <eos> and <unk> are the same
    whatever they are called."""
    known = {surface: i for i, surface in _surfaces(theirs).items()}
    pairs = {i: known[surface] for i, surface in _surfaces(ours).items() if surface in known}
    pairs[ours.eos_id] = theirs.eos_id
    if ours.unk_id is not None and theirs.unk_id is not None:
        pairs[ours.unk_id] = theirs.unk_id
    return pairs


def _surfaces(tokenizer: Tokenizer) -> dict[int, str]:
    """The surface of each token that no other token has and that is whole characters."""
    surfaces = [tokenizer.pieces([i])[0] for i in range(tokenizer.vocabulary_size)]
    special, count = {tokenizer.eos_id, tokenizer.unk_id}, Counter(surfaces)
    return {
        i: surface
        for i, surface in enumerate(surfaces)
        if i not in special and surface and "\ufffd" not in surface and count[surface] == 1
    }


def _with_rows(
    weights: Mapping[str, Tensor],
    fresh: Mapping[str, Tensor],
    pairs: Mapping[int, int],
    names: Sequence[str],
) -> dict[str, Tensor]:
    """`weights`, but those of `names`, by token, of the new vocabulary, which are `fresh` where no
    token has the surface."""
    ours, theirs = torch.tensor(list(pairs)), torch.tensor(list(pairs.values()))
    done = dict(weights)
    for name in names:
        if name in fresh and name in weights:
            rows = fresh[name].detach().clone()
            if rows.shape[1:] == weights[name].shape[1:]:
                rows[ours] = weights[name][theirs]
            done[name] = rows
    return done
