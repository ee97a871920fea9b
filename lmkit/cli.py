"""`lmkit COMMAND [RUN] key=value ...`: which command, with which run and config, and how it ended.

Nothing here imports torch: the command's module does, once there is something to compute.
"""

import ast
import importlib
import io
import logging
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, TextIO, cast

from lmkit.errors import ResultError, UserError, as_user_error, exit_code
from lmkit.redaction import Redacting, discard, hide_arguments, redact, redacted_output
from lmkit.signals import Stopped, StopSignals

PACKAGE = Path(__file__).parent
MODULES = {
    "prepare": "prepare",
    "train": "launch",
    "resume": "launch",
    "sweep": "sweep",
    "evaluate": "evaluate",
    "generate": "generate",
    "score": "score",
    "analyze": "analyze",
    "dashboard": "dashboard",
    "verify": "verify",
    "doctor": "doctor",
    "list": "list",
    "completion": "completion",
}
# These start from a config that must fit this machine; the others only read a run.
TRAINS = ("train", "resume", "sweep", "analyze")
# These compute in this process, which is theirs alone.
COMPUTES = ("train", "resume", "analyze", "evaluate", "doctor")
# What a command that reads a run sets before its command line does: the number of threads of the
# training is its own, and surprisals are wanted in full precision whatever it was in.
READS = {
    "evaluate": ("threads=null",),
    "generate": ("threads=null",),
    "score": ("threads=null", "trainer.precision=32-true"),
}
# What else of a run's config they read; model and tokenizer they refuse to see changed themselves.
USED = ("kernels", "threads", "trainer.accelerator", "trainer.precision")
USES = {"evaluate": ("data", *USED), "generate": USED, "score": USED}
# Parameters of a command that the command line does not spell out.
PROVIDED = (
    *("config", "composition", "search", "overrides", "selected", "config_dir", "commands"),
)
HYDRA_FLAGS = ("--cfg", "-c", "--info", "-i", "--hydra-help", "--shell-completion", "-sc")


@dataclass(frozen=True)
class Command:
    """A command as its source text shows it, read without importing what it imports."""

    name: str
    module: str
    positional: tuple[str, ...]
    own: dict[str, tuple[str, str | None]]  # annotation and default, as written
    doc: str
    run_lacks: str | None = None  # of `run: Annotated[Run, NAME]`, what `latest` must not lack

    @property
    def purpose(self) -> str:
        """The first line of the docstring."""
        return self.doc.partition("\n")[0]

    @property
    def words(self) -> tuple[str, ...]:
        """What the command line must begin with, without a key."""
        return tuple(name for name in self.positional if name not in PROVIDED)

    @property
    def takes_config(self) -> bool:
        """Whether the keys of a config are among those of the command."""
        return "config" in self.positional or "composition" in self.positional

    @property
    def flags(self) -> list[str]:
        """The flags that it takes."""
        flags = ["--help"]
        if "config_dir" in self.positional or self.takes_config:
            flags.append("--config-dir")
        if self.takes_config and "run" not in self.positional:
            flags += ["--config-name", "--cfg", "--info", "--package", "--resolve"]
        if self.name == "train":
            flags.append("--multirun")
        return flags

    def load(self) -> Any:
        """The function itself."""
        return getattr(importlib.import_module(f"lmkit.{self.module}"), self.name)


def commands() -> dict[str, Command]:
    """Every command, in the order of MODULES."""
    return {name: _read(name, PACKAGE / f"{module}.py") for name, module in MODULES.items()}


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
    if name in ("--help", "-h"):
        from lmkit.usage import overview

        print(overview(known))
    elif name == "--version":
        print(version("lmkit"))
    elif name == "--complete":
        from lmkit.completion import complete

        print(*complete(" ".join(rest), known), sep="\n")
    elif name not in known:
        from lmkit.groups import nearest

        raise UserError(f"lmkit {name}: no such command; {nearest(name, known)}")
    elif "--help" in rest or "-h" in rest:
        from lmkit.usage import usage

        print(usage(known[name]))
    elif "format=json" in rest:
        with _stdout_for_json() as out:
            failed: ResultError | Stopped | None = None
            try:
                result = _run(known[name], [each for each in rest if each != "format=json"])
            except (ResultError, Stopped) as error:
                if error.result is None:
                    raise
                failed, result = error, error.result
            from lmkit.run import strict_json

            print(strict_json(result, indent=2), file=out, flush=True)
            if failed:
                raise failed
    else:
        _run(known[name], [argument for argument in rest if argument != "format=text"])


def _run(command: Command, argv: list[str]) -> Any:
    """Call the command with what its signature names: run, config, overrides, its own keys."""
    from lmkit.config import parse_flags, report

    try:
        Path.cwd()
    except OSError as error:
        raise UserError(
            f"the working directory is gone ({error.strerror}): go to one that exists"
        ) from error
    words, argv = _take_words(command, argv)
    run = _find_run(argv, words.pop("run"), command.run_lacks) if "run" in words else None
    if run and "outputs" not in command.own:
        argv = [argument for argument in argv if not argument.startswith("outputs=")]
    name = _config_name(words)
    if command.takes_config:
        from lmkit.processes import launched

        launched()  # raises what is odd about its variables, before Lightning does
    if any(argument.partition("=")[0] in HYDRA_FLAGS for argument in argv):
        if run or not command.takes_config:
            raise UserError(f"lmkit {command.name} composes no config for Hydra's flags to show")
        return _show(argv, name)
    if command.name == "train" and parse_flags(argv, multirun=True).multirun:
        from lmkit.multirun import multirun

        return multirun(argv)
    selected: list[str] = []
    if "selected" in command.positional:
        flags = parse_flags(argv)
        selected = flags.overrides
        argv = [argument for argument in argv if argument not in selected]
    search = None
    if "search" in command.positional:
        from lmkit.search import split

        search = split(argv, command.own)
        argv = [*search.first(), *search.own]
    composition = _composed(command, argv, name, run)
    function = command.load()
    config = None
    if "config" in command.positional:
        from lmkit.check import check

        config, own = check(composition, function, trains=command.name in TRAINS)
    else:
        from lmkit.binding import bind

        own = bind("", composition.own, {function: command.positional}, composition.mistakes)
        if composition.mistakes and "composition" not in command.positional:
            raise UserError(report(composition.mistakes))
    given = {
        "run": run,
        "config": config,
        "composition": composition,
        "search": search,
        "selected": selected,
        "overrides": composition.overrides,
        "config_dir": parse_flags(argv).config_dir,
        "commands": {name: known.purpose for name, known in commands().items()},
        **words,
    }
    if command.name in COMPUTES:
        from lmkit.allocator import keep_freed_memory

        keep_freed_memory()
    return function(**{name: given[name] for name in command.positional}, **own)


def _composed(command: Command, argv: list[str], name: str, run: Any) -> Any:
    """The config of a command and its own keys; that of a run names the place where it lies."""
    from lmkit.config import compose

    base = run.path / "config.yaml" if run else None
    argv = [*READS.get(command.name, ()), *argv]
    types = {key: hint for key, (hint, _) in command.own.items()}
    composition = compose(argv, base, types if command.takes_config else None, name)
    composition.mistakes += _unused(command, composition.overrides)
    if run and composition.config:  # it may say where the run was before it was moved
        composition.mistakes += _renaming(run, composition.overrides)
        place = {"outputs": str(run.path.parents[1]), "name": run.name, "run_id": run.id}
        known = composition.config
        known |= {key: value for key, value in place.items() if known.get(key) is not None}
    return composition


def _key(argument: str) -> str:
    """`a.b` of `++a.b=c`."""
    return argument.partition("=")[0].lstrip("+~")


def _renaming(run: Any, overrides: Sequence[str]) -> Iterator[str]:
    """The mistakes of keys that would give a run that there is another name."""
    for argument in overrides:
        if _key(argument) in ("name", "run_id"):
            yield f"{redact(argument)}: the run stays {run.name}/{run.id}; leave it out"


def _unused(command: Command, overrides: Sequence[str]) -> Iterator[str]:
    """The mistakes of keys that a command which only reads a run makes nothing of."""
    uses = USES.get(command.name, ())
    others = ("model", "tokenizer", "outputs", *command.own)
    for argument in overrides if uses else ():
        key = _key(argument)
        within = (f"{key}.".startswith(f"{used}.") for used in (*uses, *others))
        if not any(within) and not any(used.startswith(f"{key}.") for used in uses):
            yield f"{redact(argument)}: lmkit {command.name} reads {', '.join(uses)} of the config"


def _take_words(command: Command, argv: list[str]) -> tuple[dict[str, str], list[str]]:
    """The arguments without a key that the command begins with, such as RUN, and the others."""
    from lmkit.config import ASSIGNMENT

    words: dict[str, str] = {}
    for name in command.words:
        first = argv[0] if argv else "-"
        if first.startswith("-") or (ASSIGNMENT.match(first) and not Path(first).is_dir()):
            from lmkit.usage import RUN

            raise UserError(f"lmkit {command.name} needs a {RUN if name == 'run' else name}")
        words[name], argv = first, argv[1:]
    return words, argv


def _find_run(argv: list[str], which: str, lacks: str | None) -> Any:
    """The run that RUN names, sought under `outputs=`; lacks: the name of a function of `run`."""
    from lmkit import run

    places = [argument for argument in argv if argument.startswith("outputs=")]
    outputs = places[-1].partition("=")[2] if places else "outputs"
    return run.Run.find(outputs, which, getattr(run, lacks) if lacks else None)


def _config_name(words: dict[str, str]) -> str:
    """The config that a command starts from: that of its first word, or train's."""
    from lmkit.groups import CONF

    return next((word for word in words.values() if (CONF / f"{word}.yaml").is_file()), "train")


def _show(argv: list[str], name: str) -> None:
    """Answer Hydra's flags, over the same command line that would be composed: the config with
    its classes' defaults, and by Hydra all else."""
    import hydra

    from lmkit.config import check_config_name, hydra_arguments, parse_flags
    from lmkit.groups import CONF, config_folders

    flags = parse_flags(argv)
    if flags.cfg == "job":
        from lmkit.full_config import full_config

        print(redact(full_config(argv, name)))
        return
    check_config_name(flags.config_name or name, config_folders(flags.config_dir))
    logging.getLogger().handlers.clear()  # Hydra brings its own
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it warns where there is no home
    logging.raiseExceptions = False  # `| head` has seen enough
    before, sys.argv = sys.argv, ["lmkit", *hydra_arguments(argv)]
    try:
        hydra.main(config_path=str(CONF), config_name=name, version_base="1.3")(_nothing)()
    finally:
        sys.argv = before


def _nothing(config: Any) -> None:
    """Hydra's flags only show; there is nothing to run."""


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


def _read(name: str, file: Path) -> Command:
    """A command's signature and docstring, from its module's source."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    function = next(n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == name)
    arguments = function.args
    own = {}
    for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        hint = ast.unparse(argument.annotation) if argument.annotation else ""
        own[argument.arg] = (hint, ast.unparse(default) if default else None)
    positional = tuple(argument.arg for argument in arguments.args)
    doc = ast.get_docstring(function) or ""
    return Command(name, file.stem, positional, own, doc, _run_lacks(arguments.args))


def _run_lacks(arguments: Sequence[ast.arg]) -> str | None:
    """NAME of an argument `run: Annotated[Run, NAME]`."""
    for argument in arguments:
        match argument:
            case ast.arg("run", ast.Subscript(slice=ast.Tuple([_, ast.Name(lacks)]))):
                return lacks
    return None
