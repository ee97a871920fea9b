"""`lmkit COMMAND [RUN] key=value ...`: which command, with which run and config, and how it ended.

Nothing here imports torch: the command's module does, once there is something to compute.
"""

import ast
import importlib
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, TextIO

from lmkit.errors import UserError
from lmkit.signals import Stopped, StopSignals

PACKAGE = Path(__file__).parent
MODULES = {
    "train": "launch",
    "resume": "launch",
    "evaluate": "evaluate",
    "generate": "generate",
    "score": "score",
    "analyze": "analyze",
    "dashboard": "dashboard",
    "doctor": "doctor",
    "list": "list",
}
# These start from a config that must fit this machine; the others only read a run.
TRAINS = ("train", "resume", "doctor")
HYDRA_FLAGS = ("--cfg", "-c", "--info", "-i", "--hydra-help", "--shell-completion", "-sc")


@dataclass(frozen=True)
class Command:
    """A command as its source text shows it, read without importing what it imports."""

    name: str
    module: str
    positional: tuple[str, ...]
    own: dict[str, tuple[str, str | None]]  # annotation and default, as written
    doc: str

    def load(self) -> Any:
        """The function itself."""
        return getattr(importlib.import_module(f"lmkit.{self.module}"), self.name)


def commands() -> dict[str, Command]:
    """Every command, in the order of MODULES."""
    there = {name: PACKAGE / f"{module}.py" for name, module in MODULES.items()}
    return {name: _read(name, file) for name, file in there.items() if file.is_file()}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; the exit code: 0 done, 2 the user's mistake, 130 and 143 stopped."""
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    logging.getLogger("lmkit").setLevel(logging.INFO)
    try:
        with StopSignals():
            _dispatch(list(sys.argv[1:] if argv is None else argv))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Stopped as stopped:
        return stopped.exit_code
    return 0


def _dispatch(argv: list[str]) -> None:
    name, rest = (argv[0], argv[1:]) if argv else ("--help", [])
    known = commands()
    if name in ("--help", "-h"):
        print(_overview(known))
    elif name == "--version":
        print(version("lmkit"))
    elif name not in known:
        from lmkit.config import nearest

        raise UserError(f"lmkit {name}: no such command; {nearest(name, known)}")
    elif "--help" in rest or "-h" in rest:
        print(_usage(known[name]))
    elif "format=json" in rest:
        with _stdout_for_json() as out:
            result = _run(known[name], [argument for argument in rest if argument != "format=json"])
            from lmkit.run import strict_json

            print(strict_json(result, indent=2), file=out)
    else:
        _run(known[name], [argument for argument in rest if argument != "format=text"])


def _run(command: Command, argv: list[str]) -> Any:
    """Call the command with what its signature names: run, config, composition, own keys."""
    from lmkit.config import compose, parse_flags, report

    given: dict[str, Any] = {}
    if "run" in command.positional:
        given["run"], argv = _find_run(command, argv)
    takes_config = bool({"config", "composition"} & set(command.positional))
    if any(argument.partition("=")[0] in HYDRA_FLAGS for argument in argv):
        if not takes_config or "run" in given:
            raise UserError(f"lmkit {command.name} composes no config for Hydra's flags to show")
        return _show(argv)
    base = given["run"].path / "config.yaml" if "run" in given else None
    composition = compose(argv, base, command.own if takes_config else None)
    given |= {"composition": composition, "overrides": composition.overrides}
    given["config_dir"] = parse_flags(argv).config_dir
    function = command.load()
    if "config" in command.positional:
        from lmkit.check import check

        trains = command.name in TRAINS
        given["config"], own = check(composition, function, trains=trains)
    else:
        from lmkit.binding import bind

        own = bind("", composition.own, {function: command.positional}, composition.mistakes)
        if composition.mistakes and "composition" not in command.positional:
            raise UserError(report(composition.mistakes))
    return function(**{name: given[name] for name in command.positional}, **own)


def _find_run(command: Command, argv: list[str]) -> tuple[Any, list[str]]:
    """The run that the first argument names, sought under `outputs=`, and the other arguments."""
    from lmkit.config import ASSIGNMENT
    from lmkit.run import Run

    if not argv or (ASSIGNMENT.match(argv[0]) and not Path(argv[0]).is_dir()):
        raise UserError(
            f"lmkit {command.name} needs a run: a run directory, an id, the beginning of one, or "
            f"latest, as in: lmkit {command.name} latest"
        )
    which, *rest = argv
    places = [argument for argument in rest if argument.startswith("outputs=")]
    outputs = places[-1].partition("=")[2] if places else "outputs"
    return Run.find(outputs, which), [argument for argument in rest if argument not in places]


def _show(argv: list[str]) -> None:
    """Let Hydra answer its own flags, over the same command line that would be composed."""
    import hydra

    from lmkit.config import CONF, hydra_arguments

    logging.getLogger().handlers.clear()  # Hydra brings its own
    sys.argv = ["lmkit", *hydra_arguments(argv)]
    hydra.main(config_path=str(CONF), config_name="train", version_base="1.3")(_nothing)()


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
            yield out
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
    return Command(name, file.stem, positional, own, ast.get_docstring(function) or "")


def _overview(known: dict[str, Command]) -> str:
    lines = ["usage: lmkit COMMAND [RUN] [key=value ...]", ""]
    lines += [f"  {name:<10} {known[name].doc.partition(chr(10))[0]}" for name in known]
    lines += [
        "",
        "RUN is a run directory, an id, the beginning of one, or latest.",
        "format=json prints the result as one JSON document.",
        "lmkit COMMAND --help tells a command's own keys, lmkit list what a config can name.",
    ]
    return "\n".join(lines)


def _usage(command: Command) -> str:
    run = " RUN" if "run" in command.positional else ""
    lines = [f"usage: lmkit {command.name}{run} [key=value ...]", "", command.doc]
    if command.own:
        lines += ["", "keys of its own:"]
    for key, (hint, default) in command.own.items():
        lines.append(f"  {key}={'...' if default is None else default}  ({hint})")
    if {"config", "composition"} & set(command.positional):
        lines += ["", "Any key of the config may be set too: model.hidden_size=650, data=wikitext."]
        lines += ["lmkit list shows the groups, lmkit train --cfg job the composed config."]
    return "\n".join(lines)
