"""Whether a run reaches the numbers of its recipe, and whether it may be compared with them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

from lmkit.config.signatures import signature_keys
from lmkit.config.targets import named_class
from lmkit.run.history import ABSENT, changes_by_resumes, differences, flat

Verdict = Literal["pass", "fail", "cut short", "other settings", "other text"]

# Keys that no published result says: places, machine, logging. A seed is any.
FREE = re.compile(
    r"(outputs|name|run_id|seed|recipe|kernels|restarts|threads|logger"
    r"|trainer\.(_target_|accelerator|precision|devices|num_nodes|strategy|profiler"
    r"|log_every_n_steps|num_sanity_val_steps|enable_\w+)"
    r"|callbacks\.(non_finite|samples|watchdog|checkpoint)|data\.(\w+_)?paths?|optimizer\.fused)"
    r"(\.|$)"
)
# Keys that end a training, or an epoch or evaluation of it, before its time.
SHORTENS = re.compile(
    r"trainer\.(max_epochs|max_steps|max_time|limit_\w+_batches|overfit_batches|fast_dev_run)(\.|$)"
)
LONGER = ("trainer.max_epochs", "trainer.max_steps")
# Keys that only end a training, which then goes on as if they had not.
ENDS = re.compile(r"(trainer\.(min|max)_(epochs|steps|time)|callbacks\.early_stopping)(\.|$)")
# Of the published number of tokens: where a cut by bytes falls within a character, and `<eos>`.
SLACK = 1e-6


def changes(recipe: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The keys in which the config of a run differs from that of its recipe so that it is another
    training, with both values; None stands for a default."""
    theirs, ours = _set(recipe), _set(config)
    keys = sorted(key for key in theirs.keys() | ours.keys() if not FREE.match(key))
    pairs = {key: (theirs.get(key), ours.get(key)) for key in keys}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def _set(config: Mapping[str, Any]) -> dict[str, Any]:
    """The leaves of a config that say something."""
    return {k: v for k, v in flat(config).items() if v is not None and v not in ({}, [], -1)}


def partly(
    recipe: Mapping[str, Any],
    record: Sequence[Any],
    then: Mapping[str, Any],
    config: Mapping[str, Any],
) -> dict[str, tuple[Any, Any]]:
    """The keys that a part of a training had otherwise than the recipe, before a resume changed
    them, so that it was another training; with both values.

    record: overrides.yaml. then: the config that the run has, empty if there is none yet; config:
    that with which it goes on.
    """
    theirs = _set(recipe)
    schedule = named_class("scheduler", config.get("scheduler"))
    by_length = LONGER if "num_steps" in signature_keys(schedule) else ()
    found = {}
    resumes: list[Mapping[str, Any]] = [*changes_by_resumes(record)]
    for changed in [*resumes, differences(then, config) if then else {}]:
        for key, (value, _) in changed.items():
            before = None if value == ABSENT else _set({key: value}).get(key)
            harmless = FREE.match(key) or (ENDS.match(key) and key not in by_length)
            if not harmless and before != theirs.get(key):
                found[key] = (theirs.get(key), before)
    return found


def other_text(published: Mapping[str, int] | None, num_tokens: Mapping[str, int]) -> Iterator[str]:
    """A sentence for each split whose number of tokens is not the published one."""
    for split, number in (published or {}).items():
        found = num_tokens.get(split)
        if found is None or not math.isclose(found, number, rel_tol=SLACK):
            has = "is missing" if found is None else f"has {found:,} tokens"
            yield f"{split} {has}, the published one {number:,}"


def reaches(ours: float, paper: float, tolerance: float) -> bool:
    """Whether a number, of which less is better, is at most `tolerance` above the paper's."""
    return ours <= paper + tolerance


def verdict(
    changed: Mapping[str, tuple[Any, Any]],
    otherwise: Iterable[str],
    texts: list[str],
    reached: list[bool],
) -> Verdict:
    """The verdict on a run: pass and fail are kept for a whole training on the published text.

    changed: of `changes`; otherwise: of `partly`; texts: of `other_text`.
    """
    return not_whole(changed, otherwise, texts) or ("pass" if all(reached) else "fail")


def not_whole(
    changed: Mapping[str, tuple[Any, Any]], otherwise: Iterable[str], texts: list[str]
) -> Verdict | None:
    """The verdict on a run that may not be compared with its paper; None if it may."""
    if any(otherwise) or any(not _shortens(key, pair) for key, pair in changed.items()):
        return "other settings"
    if changed:
        return "cut short"
    return "other text" if texts else None


def _shortens(key: str, pair: tuple[Any, Any]) -> bool:
    theirs, ours = pair
    if key in LONGER and theirs is not None and (ours is None or ours > theirs):
        return False
    return bool(SHORTENS.match(key))
