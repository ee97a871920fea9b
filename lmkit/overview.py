"""The text of `lmkit --help`."""

from collections.abc import Mapping
from itertools import chain
from typing import Any

from lmkit.config.groups import OWN

RUN = "RUN: a run directory, an id, the beginning of one, or latest"
GROUPS = {
    "train": ("train", "resume", "sweep", "reproduce", "prepare"),
    "use a trained model": ("evaluate", "generate", "score"),
    "open doors": ("import", "export", "harness"),
    "look": ("dashboard", "analyze", "verify"),
    "find your way": ("doctor", "list", "completion"),
}


def overview(known: Mapping[str, Any]) -> str:
    """The overview of all commands, a line each."""
    lines = ["usage: lmkit COMMAND [RUN] [key=value ...]"]
    others = [name for name in known if name not in chain(*GROUPS.values())]
    groups = {**GROUPS, **({"of other packages": others} if others else {})}
    for title, names in groups.items():
        lines += ["", f"{title}:", *(f"  {name:<10} {known[name].purpose}" for name in names)]
    lines += [
        "",
        RUN,
        "format=json prints the result as one JSON document.",
        "lmkit COMMAND --help tells what a command takes, lmkit list what a config can name.",
        OWN,
    ]
    return "\n".join(lines)
