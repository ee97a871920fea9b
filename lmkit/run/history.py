"""A run that goes on: what of its config may change, and what it was begun and gone on with."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

# What a run may be continued with: more length, other devices, other logging; and other places, as
# on another machine, for what is read there is compared by its hashes.
LENGTH = (
    r"trainer\.(min_epochs|max_epochs|min_steps|max_steps|max_time)|callbacks\.early_stopping"
    r"|scheduler\.(T_max|total_steps|epochs|steps_per_epoch|total_iters|max_iters|milestones"
    r"|schedulers)"
)
FREE = re.compile(
    rf"({LENGTH}|outputs|name|run_id|kernels|restarts|threads|logger|callbacks\.(samples|watchdog)"
    r"|trainer\.(accelerator|precision|devices|num_nodes|strategy|profiler|log_every_n_steps"
    r"|enable_\w+)"
    r"|data\.(\w+_)?paths?|tokenizer\.path)(\.|$)"
)
# With another of these, a run that has ended comes to something else.
AFRESH = re.compile(rf"({LENGTH}|logger|callbacks\.samples)(\.|$)")
# What may also change once a run has diverged, so that it does not again.
MENDS = re.compile(r"(optimizer\.lr|trainer\.gradient_clip_(val|algorithm))$")


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The dotted keys in which two configs differ, with both values, one of them maybe `absent`.

    An empty group is as none: a run from before there was a group goes on without it.
    """
    one, other = ({k: v for k, v in flat(c).items() if v != {}} for c in (then, now))
    pairs = {key: (one.get(key, "absent"), other.get(key, "absent")) for key in {**one, **other}}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def refused(
    then: Mapping[str, Any], now: Mapping[str, Any], *, diverged: bool
) -> Iterator[tuple[str, Any, Any]]:
    """Each key that may not change and has, with both values."""
    for key, pair in differences(then, now).items():
        if not FREE.match(key) and not (diverged and MENDS.match(key)):
            yield key, *pair


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Leaves by dotted key; an empty node is a leaf, lists are leaves."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def inner_keys(path: str, node: Mapping[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """Each key of a node and of the nodes in its lists: its dotted path, its name, its value."""
    for key, value in node.items():
        yield f"{path}.{key}", key, value
        for number, inner in enumerate(value if isinstance(value, list) else ()):
            if isinstance(inner, Mapping):
                yield from inner_keys(f"{path}.{key}.{number}", inner)


# Records of a run's first start stay as they are. A resume adds what is another by then: to
# overrides.yaml, a list, an entry at its end; to a mapping an entry of its list `resumed`.


def changes(record: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """What of a mapping is another now than it was last."""
    known = latest(record)
    return {key: value for key, value in now.items() if key not in known or known[key] != value}


def gained(record: Mapping[str, Any], changed: Mapping[str, Any]) -> dict[str, Any]:
    """A mapping as it was written, with what has changed since."""
    return {**record, "resumed": [*record.get("resumed", []), {"at": time(), **changed}]}


def is_record(values: Mapping[str, Any]) -> bool:
    """Whether what has been added to a mapping, if anything, is mappings too."""
    resumed = values.get("resumed", [])
    return isinstance(resumed, list) and all(isinstance(each, Mapping) for each in resumed)


def latest(record: Mapping[str, Any]) -> dict[str, Any]:
    """A mapping as it is by now: what was written first, with all that has changed since."""
    first = {key: value for key, value in record.items() if key != "resumed"}
    return first | {key: e[key] for e in record.get("resumed", []) for key in e if key != "at"}


def overrides_gained(
    record: Sequence[Any],
    overrides: Sequence[str],
    then: Mapping[str, Any],
    now: Mapping[str, Any],
) -> list[Any]:
    """overrides.yaml with those of a resume, and each key of the config that they changed, with
    the value before and now."""
    changed = {key: list(pair) for key, pair in differences(then, now).items()}
    return [*record, {"resumed": time(), "overrides": list(overrides), "changed": changed}]


def commanded(record: Sequence[Any]) -> list[str]:
    """The overrides of the first command and of each resume."""
    later = [entry.get("overrides") for entry in record if isinstance(entry, Mapping)]
    commands = [record, *(each for each in later if isinstance(each, list))]
    return [each for command in commands for each in command if isinstance(each, str)]


def earlier(record: Sequence[Any], key: str) -> list[Any]:
    """The values of a dotted key of the config before a resume gave it another."""
    return [changed[key][0] for changed in _changes(record) if key in changed]


def _changes(record: Sequence[Any]) -> list[dict[str, list[Any]]]:
    """What each resume has changed, as pairs; what is none, somebody else has written."""
    changes = [entry.get("changed") for entry in record if isinstance(entry, Mapping)]
    return [
        {key: pair for key, pair in changed.items() if isinstance(pair, list) and len(pair) == 2}
        for changed in changes
        if isinstance(changed, Mapping)
    ]


def last_changed(record: Sequence[Any]) -> dict[str, list[Any]]:
    """What the last resume has changed of the config, each key with the value before and now."""
    return [{}, *_changes(record)][-1]


def time() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
