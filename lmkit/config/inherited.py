"""The config of a run that begins with the weights of another: its model, head and tokenizer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from hydra.core.override_parser.types import Override

from lmkit.config.targets import resolve_target
from lmkit.errors import UserError
from lmkit.run import Run, no_checkpoint

INHERITED = ("model", "head")
STORED = "lmkit.tokenizer.Stored"


def inherited(
    config: Mapping[str, Any], groups: list[Override], values: list[Override], mistakes: list[str]
) -> dict[str, Any]:
    """`config` with the model and head of the run that `init` names and, unless the vocabulary is
    new or the data has its own, its tokenizer; `init` becomes the run's directory.

    groups, values: the choices and values of the command line. Values of the model are applied
    later; whatever else says what the model or the tokenizer is, is a mistake.
    """
    which = config["init"]
    try:
        run = Run.find(str(config.get("outputs")), str(which), no_checkpoint)
        theirs = run.config()
    except UserError as error:
        mistakes.append(f"init={which}: {error}")
        return dict(config)
    new = config.get("init_vocabulary") == "new"
    fixed = ("model", "head") if new else ("model", "head", "tokenizer")
    within = () if new else ("tokenizer",)
    every = (*groups, *values)
    for override in every:
        key = override.key_or_group
        if (override in groups and key in fixed) or _group(override) in within:
            remedy = "; for another vocabulary set init_vocabulary=new" if key in within else ""
            mistakes.append(
                f"{override.input_line}: init={which} says what the {_group(override)} is; "
                f"leave it out{remedy}"
            )
    done = {**config, "init": str(run.path), "model": theirs["model"], "head": theirs["head"]}
    if _has_tokenizer(config):
        return done
    if not new:
        done["tokenizer"] = {"_target_": STORED, "path": str(run.path)}
    elif "path" not in theirs["tokenizer"] and not any(_group(o) == "tokenizer" for o in every):
        done["tokenizer"] = theirs["tokenizer"]  # of the same kind, trained on the new data
    return done


def _group(override: Override) -> str:
    return str(override.key_or_group.partition(".")[0])


def _has_tokenizer(config: Mapping[str, Any]) -> bool:
    """Whether the data is of token ids."""
    try:
        source: Any = resolve_target((config.get("data") or {}).get("_target_"))
    except UserError:
        return False  # the check reports it
    return bool(getattr(source, "has_tokenizer", False))


def without_init(config: Mapping[str, Any]) -> Iterator[str]:
    """Mistakes of keys that have no effect without `init`."""
    if not config.get("init"):
        for key, default in (("init_checkpoint", "best"), ("init_vocabulary", "kept")):
            if config.get(key, default) != default:
                yield f"{key}={config[key]}: no effect without init=RUN; leave it out"
