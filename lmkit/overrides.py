"""Overrides of a command line, as they are written: key=value, +key=value, ++key=value, ~key."""

from collections.abc import Iterable


def key_of(override: str) -> str:
    """The key of an override: `a.b` of `++a.b=c`."""
    return override.partition("=")[0].lstrip("+~")


def names(overrides: Iterable[str], key: str) -> bool:
    """Whether one of the overrides has this key."""
    return any(key_of(each) == key for each in overrides)
