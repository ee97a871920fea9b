"""Reports mistakes: all of them at once, with suggestions."""

import re
from collections.abc import Collection, Sequence
from difflib import get_close_matches

from lmkit.errors import UserError


def report(mistakes: Sequence[str]) -> str:
    """All mistakes as a text, one per line, under their number."""
    count = f"{len(mistakes)} mistake{'s' if len(mistakes) > 1 else ''}:"
    return "\n".join([count, *(f"  {mistake}" for mistake in mistakes)])


def reported(error: UserError) -> list[str]:
    """The mistakes in a `report`; any other error is a single mistake."""
    first, *lines = str(error).splitlines()
    is_report = re.fullmatch(r"\d+ mistakes?:", first)
    return [line.removeprefix("  ") for line in lines] if is_report else [str(error)]


def first_lines(error: Exception) -> str:
    """The message of an error of Hydra, YAML or OmegaConf, without links and search paths."""
    lines = [line.strip() for line in str(error).splitlines()]
    kept = [line for line in lines if line and not line.startswith(("See https", "Config search"))]
    return " ".join(line for line in kept if "provider=" not in line)


def nearest(name: str, names: Collection[str]) -> str:
    """`did you mean ...?`, or the list of all names."""
    close = get_close_matches(name, list(names), n=1)
    return f"did you mean {close[0]}?" if close else f"there are: {', '.join(sorted(names))}"
