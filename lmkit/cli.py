"""`lmkit COMMAND [RUN] key=value ...`: which command, its streams, and how it ended.

Nothing here imports torch: the command's module does, once there is something to compute.
"""

import io
import logging
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TextIO, cast

import lmkit
from lmkit.command import commands, users_command
from lmkit.errors import ResultError, UserError, as_user_error, exit_code
from lmkit.invoke import invoke
from lmkit.system.allowed import find_in_working_directory
from lmkit.system.redaction import Redacting, discard, hide_arguments, redacted_output
from lmkit.system.signals import Stopped, StopSignals


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; the exit code: 0 done, 1 failed, 2 the user's mistake, 130 and 143
    stopped."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    hide_arguments(arguments)
    _open_streams()
    with redacted_output():
        return _main(arguments)


def _main(argv: list[str]) -> int:
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    logging.getLogger("lmkit").setLevel(logging.INFO)
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it warns where there is no home
    logging.raiseExceptions = False  # what cannot be logged, as on a full disk, has no stack
    try:
        with StopSignals():
            find_in_working_directory()
            _dispatch(argv)
            sys.stdout.flush()
    except Stopped as stopped:
        return stopped.exit_code
    except Exception as error:
        return _tell(error)
    return 0


def _tell(error: Exception) -> int:
    """Say on stderr why a command has ended, where that takes anything; the exit code."""
    known = error if isinstance(error, ResultError) else as_user_error(error)
    with suppress(OSError):
        if known:
            print(f"error: {known}", file=sys.stderr)
        else:  # the interpreter would print it as it is, secrets and all
            traceback.print_exc()
    try:
        sys.stdout.flush()
    except OSError:
        discard(sys.stdout)
    return exit_code(error)


def _open_streams() -> None:
    """Have stdin, stdout and stderr, also where they were closed (`>&-`) or are not UTF-8.

    The next file that is opened would be taken for one that is closed.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            os.dup2(os.open(os.devnull, os.O_RDWR), number)
            os.set_inheritable(number, True)  # where `open` has given that number itself
            mode = "w" if number else "r"
            setattr(sys, name, os.fdopen(number, mode, encoding="utf-8", closefd=False))
    for name in ("COLUMNS", "LINES"):  # 0: not known, as on a serial line
        if os.environ.get(name, "1").strip("0 ") == "":
            del os.environ[name]
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # not a test's
            stream.reconfigure(errors="backslashreplace")


def _dispatch(argv: list[str]) -> None:
    name, rest = (argv[0], argv[1:]) if argv else ("--help", [])
    known = commands()
    if "." in name:
        known[name] = users_command(name)
    if name in ("--help", "-h"):
        from lmkit.usage import overview

        print(overview(known))
    elif name == "--version":
        print(lmkit.__version__)
    elif name == "--complete":
        from lmkit.commands.completion import complete

        print(*complete(" ".join(rest), known), sep="\n")
    elif name not in known:
        from lmkit.config.mistakes import nearest

        raise UserError(f"lmkit {name}: no such command; {nearest(name, known)}")
    elif "--help" in rest or "-h" in rest:
        from lmkit.usage import usage

        print(usage(known[name]))
    elif "format=json" in rest:
        with _stdout_for_json() as out:
            failed: ResultError | Stopped | None = None
            try:
                result = invoke(known[name], [each for each in rest if each != "format=json"])
            except (ResultError, Stopped) as error:
                if error.result is None:
                    raise
                failed, result = error, error.result
            from lmkit.system.files import strict_json

            print(strict_json(result, indent=2), file=out, flush=True)
            if failed:
                raise failed
    else:
        invoke(known[name], [argument for argument in rest if argument != "format=text"])


@contextmanager
def _stdout_for_json() -> Iterator[TextIO]:
    """A stream to stdout, while all that is printed, by child processes too, goes to stderr."""
    sys.stdout.flush()
    saved = os.dup(1)
    os.dup2(2, 1)
    try:
        with open(saved, "w", encoding="utf-8", closefd=False) as out:
            yield cast(TextIO, Redacting(out, loses=(BrokenPipeError,)))
    finally:
        sys.stdout.flush()
        os.dup2(saved, 1)
        os.close(saved)
