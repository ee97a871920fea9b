"""The command line `lmkit COMMAND [RUN] key=value ...`: streams, dispatch, errors, exit codes.

Nothing here imports torch: a command's module does, when there is something to compute.
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
    """Run a command line and return the exit code: 0 done, 1 failed, 2 a mistake of the user, 130
    or 143 stopped."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    hide_arguments(arguments)
    _open_streams()
    with redacted_output():
        return _main(arguments)


def _main(argv: list[str]) -> int:
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    logging.getLogger("lmkit").setLevel(logging.INFO)
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it warns if there is no home
    logging.raiseExceptions = False  # print no stack for a log that fails, as on a full disk
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
    """Print the error that ended a command, if stderr can be written, and return the exit code."""
    known = error if isinstance(error, ResultError) else as_user_error(error)
    with suppress(OSError):
        if known:
            print(f"error: {known}", file=sys.stderr)
        else:  # the interpreter itself would print secrets too
            traceback.print_exc()
    try:
        sys.stdout.flush()
    except OSError:
        discard(sys.stdout)
    return exit_code(error)


def _open_streams() -> None:
    """Make stdin, stdout and stderr usable, even if they were closed (`>&-`) or are not UTF-8.

    Otherwise the next file that is opened would get the number of a closed one.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            os.dup2(os.open(os.devnull, os.O_RDWR), number)
            os.set_inheritable(number, True)  # needed if `open` itself has returned that number
            mode = "w" if number else "r"
            setattr(sys, name, os.fdopen(number, mode, encoding="utf-8", closefd=False))
    for name in ("COLUMNS", "LINES"):  # 0 means unknown, as on a serial line
        if os.environ.get(name, "1").strip("0 ") == "":
            del os.environ[name]
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # tests replace the streams
            stream.reconfigure(errors="backslashreplace")


def _dispatch(argv: list[str]) -> None:
    name, rest = (argv[0], argv[1:]) if argv else ("--help", [])
    known = commands()
    if "." in name:
        known[name] = users_command(name)
    if name in ("--help", "-h"):
        from lmkit.overview import overview

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
    """A stream to the real stdout, while all else that is printed, also by child processes, goes to
    stderr."""
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
