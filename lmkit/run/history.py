"""The history of a run: what may change in its config on a resume, and the records of changes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

# Keys that may change on a resume: length, devices, logging, what the result is compared with; and
# paths, as on another machine, because what is read there is compared by its hashes.
LENGTH = (
    r"trainer\.(min_epochs|max_epochs|min_steps|max_steps|max_time)|callbacks\.early_stopping"
    r"|scheduler\.(T_max|total_steps|epochs|steps_per_epoch|total_iters|max_iters|milestones"
    r"|schedulers|decay_share)"
)
FREE = re.compile(
    rf"({LENGTH}|outputs|name|run_id|recipe|kernels|restarts|threads|logger|callbacks\.(samples|watchdog)"
    r"|trainer\.(accelerator|precision|devices|num_nodes|strategy|profiler|log_every_n_steps"
    r"|enable_\w+)"
    r"|data\.(\w+_)?paths?|tokenizer\.path)(\.|$)"
)
# Keys that change the result of a run that has ended.
AFRESH = re.compile(rf"({LENGTH}|logger|callbacks\.samples)(\.|$)")
# Keys that may also change once a run has diverged, so that it does not diverge again.
RATE = re.compile(r"optimizer\.((groups\..+\.)?lr|adam_lr)$")  # of all parameters, or of some
MENDS = re.compile(rf"{RATE.pattern}|trainer\.gradient_clip_(val|algorithm)$")


ABSENT = "absent"  # stands for the value of a key that one of two configs does not have


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The dotted keys in which two configs differ, with both values; one may be `absent`.

    An empty group counts as none, and so do `averaging`, `recipe` and the keys of `init` where they
    are null, so that a run from before they existed can resume.
    """
    one, other = (
        {
            k: v
            for k, v in flat(c).items()
            if v != {}
            and (c.get("init") or not k.startswith("init"))
            and not (v is None and k in ("averaging", "recipe"))
        }
        for c in (then, now)
    )
    pairs = {key: (one.get(key, ABSENT), other.get(key, ABSENT)) for key in {**one, **other}}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def refused(
    then: Mapping[str, Any], now: Mapping[str, Any], *, diverged: bool
) -> Iterator[tuple[str, Any, Any]]:
    """Each key that has changed but must not, with both values."""
    for key, pair in differences(then, now).items():
        if not FREE.match(key) and not (diverged and MENDS.match(key)):
            yield key, *pair


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The leaves of a config by dotted key; an empty mapping is a leaf, and so is a list."""
    leaves: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            leaves |= flat(value, f"{prefix}{key}.")
        else:
            leaves[f"{prefix}{key}"] = value
    return leaves


def inner_keys(path: str, node: Mapping[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """Each key of a node and of the nodes in its lists: its dotted path, its name, its value."""
    for key, value in node.items():
        yield f"{path}.{key}", key, value
        for number, inner in enumerate(value if isinstance(value, list) else ()):
            if isinstance(inner, Mapping):
                yield from inner_keys(f"{path}.{key}.{number}", inner)


# Records of a run's first start are never changed. A resume adds what is different: to
# overrides.yaml, a list, an entry at its end; to a mapping, an entry in its list `resumed`.


def changes(record: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """The values of `now` that differ from the newest ones of a record."""
    known = latest(record)
    return {key: value for key, value in now.items() if key not in known or known[key] != value}


def gained(record: Mapping[str, Any], changed: Mapping[str, Any]) -> dict[str, Any]:
    """A record with one more entry, for what has changed."""
    return {**record, "resumed": [*record.get("resumed", []), {"at": time(), **changed}]}


def is_record(values: Mapping[str, Any]) -> bool:
    """Whether the entries that resumes have added, if any, are mappings."""
    resumed = values.get("resumed", [])
    return isinstance(resumed, list) and all(isinstance(each, Mapping) for each in resumed)


def stages(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The values of a record after the first start, and after each resume that changed them with
    its time `at`; oldest first."""
    found = [{key: value for key, value in record.items() if key != "resumed"}]
    for entry in record.get("resumed", []):
        found.append({**found[-1], **entry})
    return found


def latest(record: Mapping[str, Any]) -> dict[str, Any]:
    """The newest values of a record: those written first, updated with all later entries."""
    return {key: value for key, value in stages(record)[-1].items() if key != "at"}


def overrides_gained(
    record: Sequence[Any],
    overrides: Sequence[str],
    then: Mapping[str, Any],
    now: Mapping[str, Any],
) -> list[Any]:
    """overrides.yaml with one more entry: a resume's overrides, and each key of the config that has
    changed, with the values before and now."""
    changed = {key: list(pair) for key, pair in differences(then, now).items()}
    return [*record, {"resumed": time(), "overrides": list(overrides), "changed": changed}]


def commanded(record: Sequence[Any]) -> list[str]:
    """The overrides of the first command and of each resume."""
    later = [entry.get("overrides") for entry in record if isinstance(entry, Mapping)]
    commands = [record, *(each for each in later if isinstance(each, list))]
    return [each for command in commands for each in command if isinstance(each, str)]


def earlier(record: Sequence[Any], key: str) -> list[Any]:
    """The values that a dotted key of the config had before resumes changed it."""
    return [changed[key][0] for changed in changes_by_resumes(record) if key in changed]


def flat_at(record: Sequence[Any], config: Mapping[str, Any], since: str = "") -> dict[str, Any]:
    """The leaves of a run's config as they were before the resumes after a time, by default before
    all. config: that of now."""
    leaves = flat(config)
    for changed in reversed(changes_by_resumes(record, since)):
        leaves |= {key: before for key, (before, _) in changed.items()}
    return {key: value for key, value in leaves.items() if value != ABSENT}


def changes_by_resumes(record: Sequence[Any], since: str = "") -> list[dict[str, list[Any]]]:
    """What each resume, or each after a time, has changed, as pairs; anything else was not written
    by lmkit and is left out."""
    changes = [
        entry.get("changed")
        for entry in record
        if isinstance(entry, Mapping) and (not since or str(entry.get("resumed")) > since)
    ]
    return [
        {key: pair for key, pair in changed.items() if isinstance(pair, list) and len(pair) == 2}
        for changed in changes
        if isinstance(changed, Mapping)
    ]


def resumes(record: Sequence[Any]) -> list[str]:
    """The times of the resumes in overrides.yaml."""
    times = [entry.get("resumed") for entry in record if isinstance(entry, Mapping)]
    return [time for time in times if isinstance(time, str)]


def last_changed(record: Sequence[Any]) -> dict[str, list[Any]]:
    """The config keys that the last resume has changed, with the values before and now."""
    return [{}, *changes_by_resumes(record)][-1]


def time() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
