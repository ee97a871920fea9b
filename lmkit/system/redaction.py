"""Redacts secrets: tells which keys and variables hold them, and removes their values from texts.

Hidden are the values of the environment's secret variables, and those passed to `hide`: values that
`${oc.env:NAME}` stands for, and those under a secret key in a command line or config.
"""

import json
import logging
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, TextIO, cast
from urllib.parse import quote

_WORDS = r"api_?key|access_?key|private_?key|secret|passw(?:or)?d|passphrase|credential|_auth(?!or)"
# Not tokens, num_tokens, tokenizer, eos_token, which are terms of language modelling.
_TOKENS = r"(?:^|(?:^|_)(?:hf|api|access|auth|bearer|refresh)_)token$"
SECRET_KEY = re.compile(rf"{_WORDS}|^auth$|{_TOKENS}", re.IGNORECASE)
SECRET_VARIABLE = re.compile(rf"{_WORDS}|token$|_pat$", re.IGNORECASE)
USER_INFO = re.compile(r"(?<=://)[^\s/@'\"]+(?=@)")
_USER_OF_PATH = re.compile(r"(?<=:/)(?!/)[^\s/@'\"]+(?=@)|" + USER_INFO.pattern)  # Path drops a /
SHORTEST = 8  # shorter values are not hidden: they could be ordinary words
SHOWN = "***"
# A value under a secret key anywhere in an argument: api_key=x, "password": "x".
_ASSIGNED = re.compile(
    r"""(?P<key>\w+)(?P<is>["']?\s*[=:]\s*)(?P<value>"[^"]*"|'[^']*'|[^\s,{}]+)"""
)

_hidden: dict[str, str] = {}


def is_secret_key(key: str) -> bool:
    """Whether the last part of a dotted key says that its value is a secret."""
    return bool(SECRET_KEY.search(key.rpartition(".")[2]))


def is_secret_variable(name: str) -> bool:
    return bool(SECRET_VARIABLE.search(name))


def hide(value: str, shown: str = SHOWN) -> None:
    """From now on `redact` replaces a value by `shown`, unless the value is too short."""
    if len(value) >= SHORTEST:
        _hidden[value] = shown


def secret_variable_in(text: str) -> str | None:
    """The secret environment variable whose value is in `text`, None if there is none."""
    return next((name for value, name in _environment().items() if value in text), None)


def redact(text: str) -> str:
    """`text` without hidden values, also as JSON, Python and URLs would write them, and without the
    user and password of a URL."""
    hidden = dict.fromkeys(_environment(), SHOWN) | _hidden
    if hidden:
        pattern, shown = _search(tuple(hidden.items()))
        text = pattern.sub(lambda match: shown[match[0]], text)
    return _USER_OF_PATH.sub(SHOWN, text) if ":/" in text else text


def redacted(value: Any) -> Any:
    """Plain nested values in which all texts are redacted."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, Mapping):
        return {key: redacted(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [redacted(item) for item in value]
    return value


def mask(argument: str) -> str:
    """An argument of a command line without the values of its secret keys, redacted."""

    def without_value(match: re.Match[str]) -> str:
        return match["key"] + match["is"] + SHOWN if is_secret_key(match["key"]) else match[0]

    key, is_, _ = argument.partition("=")
    if is_ and is_secret_key(key.lstrip("+~-")):
        return f"{key}={SHOWN}"
    return redact(_ASSIGNED.sub(without_value, argument))


def hide_arguments(argv: Sequence[str]) -> None:
    """Hide the values of secret keys in a command line, so that no message shows them."""
    for argument in argv:
        key, _, value = argument.partition("=")
        if is_secret_key(key.lstrip("+~-")):
            hide(value.strip("'\""))
        for match in _ASSIGNED.finditer(argument):
            if is_secret_key(match["key"]):
                hide(match["value"].strip("'\""))


class Redacting:
    """A text stream that redacts what is written to it; otherwise it acts as the stream itself."""

    def __init__(self, stream: TextIO, *, loses: tuple[type[OSError], ...] = ()) -> None:
        """loses: after one of these errors of the stream, all that is written to it is silently
        discarded."""
        self._stream = stream
        self._loses = loses

    def write(self, text: str) -> int:
        with self._losing():
            self._stream.write(redact(text))
        return len(text)

    def flush(self) -> None:
        with self._losing():
            self._stream.flush()

    def writelines(self, lines: Sequence[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @contextmanager
    def _losing(self) -> Iterator[None]:
        try:
            yield
        except self._loses:
            discard(self._stream)


def discard(stream: TextIO) -> None:
    """Redirect a stream that cannot be written to the null device, for the last flush too."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


@contextmanager
def redacted_output() -> Iterator[None]:
    """Redact all that Python writes to stdout and stderr: prints, warnings, logs, tracebacks.

    A command does not fail because nobody reads its output, as after `| head`, nor because stderr
    cannot be written.
    """
    before = sys.stdout, sys.stderr
    sys.stdout = out = cast(TextIO, Redacting(before[0], loses=(BrokenPipeError,)))
    sys.stderr = err = cast(TextIO, Redacting(before[1], loses=(OSError,)))
    loggers = [logging.root, *logging.root.manager.loggerDict.values()]
    for handler in (h for logger in loggers for h in getattr(logger, "handlers", ())):
        if isinstance(handler, logging.StreamHandler) and handler.stream in before:
            handler.setStream(out if handler.stream is before[0] else err)  # a library's handler
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def _environment() -> dict[str, str]:
    """The values of secret environment variables, each with the variable's name."""
    return {
        value: name
        for name, value in os.environ.items()
        if len(value) >= SHORTEST and is_secret_variable(name)
    }


@lru_cache(maxsize=8)
def _search(hidden: tuple[tuple[str, str], ...]) -> tuple[re.Pattern[str], dict[str, str]]:
    """A pattern for all forms of the hidden values, the longest first, and their replacements."""
    shown = {
        form: text
        for value, text in hidden
        for line in (value, *value.splitlines())  # a private key has several lines
        for form in (quote(line, safe=""), repr(line)[1:-1], json.dumps(line)[1:-1], line)
        if len(form) >= SHORTEST
    }
    forms = sorted(shown, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, forms))), shown
