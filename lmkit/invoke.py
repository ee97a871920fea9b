"""Calls the command of a command line, with its run, its config and its own keys."""

import logging
import sys
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from lmkit.command import Command, commands
from lmkit.errors import UserError
from lmkit.overrides import key_of
from lmkit.system.redaction import redact

# These start from a config that must fit this machine; the others only read a run.
TRAINS = ("train", "resume", "sweep", "analyze")
# These compute in this process, which is theirs alone.
COMPUTES = ("train", "resume", "reproduce", "analyze", "evaluate", "score", "harness", "doctor")
# What a command that reads a run sets before its command line does: the number of threads of the
# training is its own, and surprisals are wanted in full precision whatever it was in.
READS = {
    "evaluate": ("threads=null",),
    "generate": ("threads=null",),
    "score": ("threads=null", "trainer.precision=32-true"),
    "harness": ("threads=null", "trainer.precision=32-true"),
}
# And what a key of its own adds to it.
READS_WITH = {("evaluate", "suite"): ("trainer.precision=32-true",)}
# What else of a run's config they read; model and tokenizer they refuse to see changed themselves.
USED = ("kernels", "threads", "trainer.accelerator", "trainer.precision")
USES = {
    "evaluate": ("data", *USED),
    "generate": USED,
    "score": USED,
    "harness": USED,
    "import": ("name", "run_id", "outputs", "data", *USED),
}
# The first words that are an option of a config group.
CHOOSES = {"recipe": "experiment"}
HYDRA_FLAGS = ("--cfg", "-c", "--info", "-i", "--hydra-help", "--shell-completion", "-sc")


def invoke(command: Command, argv: list[str]) -> Any:
    """Call a command with the arguments in its signature: run, config, overrides, its own keys."""
    from lmkit.config.grammar import parse_flags

    try:
        Path.cwd()
    except OSError as error:
        raise UserError(
            f"the working directory is gone ({error.strerror}): go to one that exists"
        ) from error
    words, argv = _take_words(command, argv)
    run = _find_run(argv, words.pop("run"), command.run_lacks) if "run" in words else None
    if run and "outputs" not in command.own:
        argv = [argument for argument in argv if key_of(argument) != "outputs"]
    argv = [*(f"{CHOOSES[word]}={words[word]}" for word in words if word in CHOOSES), *argv]
    name = _config_name(words)
    if command.takes_config:
        from lmkit.system.processes import launched

        launched()  # raises what is odd about its variables, before Lightning does
    if any(argument.partition("=")[0] in HYDRA_FLAGS for argument in argv):
        if run or not command.takes_config:
            raise UserError(f"lmkit {command.name} composes no config for Hydra's flags to show")
        return _show(argv, name)
    if command.name == "train" and parse_flags(argv, multirun=True).multirun:
        from lmkit.sweep.multirun import multirun

        return multirun(argv)
    given, own = _given(command, argv, name, run)
    given |= words
    if command.name in COMPUTES:
        from lmkit.system.allocator import keep_freed_memory

        keep_freed_memory()
    arguments = {name: given[name] for name in command.positional if name in given}
    return command.load()(**arguments, **own)


def _given(
    command: Command, argv: list[str], name: str, run: Any
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a command may name in its signature, checked, and its own keys."""
    from lmkit.config.grammar import parse_flags
    from lmkit.config.mistakes import report

    selected: list[str] = []
    if "selected" in command.positional:
        flags = parse_flags(argv)
        selected = flags.overrides
        argv = [argument for argument in argv if argument not in selected]
    search = None
    if "search" in command.positional:
        from lmkit.sweep.search import split

        search = split(argv, command.own)
        argv = [*search.first(), *search.own]
    composition = _composed(command, argv, name, run)
    function = command.load()
    config = None
    if "config" in command.positional:
        from lmkit.config.check import check

        config, own = check(composition, function, trains=command.name in TRAINS)
    else:
        from lmkit.config.binding import bind

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
    }
    if "commands" in command.positional:  # all of their sources are read
        given["commands"] = {name: known.purpose for name, known in commands().items()}
    return given, own


def _composed(command: Command, argv: list[str], name: str, run: Any) -> Any:
    """The config of a command and its own keys; that of a run names the place where it lies."""
    from lmkit.config.compose import compose

    base = run.path / "config.yaml" if run else None
    added = (READS_WITH.get((command.name, key), ()) for key in map(key_of, argv))
    argv = [*READS.get(command.name, ()), *chain.from_iterable(added), *argv]
    types = {key: hint for key, (hint, _) in command.own.items()}
    composition = compose(argv, base, types if command.takes_config else None, name)
    composition.mistakes += _unused(command, composition.overrides)
    if run and composition.config:  # it may say where the run was before it was moved
        composition.mistakes += _renaming(run, composition.overrides)
        place = {"outputs": str(run.path.parents[1]), "name": run.name, "run_id": run.id}
        known = composition.config
        known |= {key: value for key, value in place.items() if known.get(key) is not None}
    return composition


def _renaming(run: Any, overrides: Sequence[str]) -> Iterator[str]:
    """The mistakes of keys that would rename an existing run."""
    for argument in overrides:
        if key_of(argument) in ("name", "run_id"):
            yield f"{redact(argument)}: the run stays {run.name}/{run.id}; leave it out"


def _unused(command: Command, overrides: Sequence[str]) -> Iterator[str]:
    """The mistakes of keys that have no effect in a command that only reads a run."""
    uses = USES.get(command.name, ())
    others = ("model", "tokenizer", "outputs", *command.own)
    for argument in overrides if uses else ():
        key = key_of(argument)
        within = (f"{key}.".startswith(f"{used}.") for used in (*uses, *others))
        if not any(within) and not any(used.startswith(f"{key}.") for used in uses):
            yield f"{redact(argument)}: lmkit {command.name} reads {', '.join(uses)} of the config"


def _take_words(command: Command, argv: list[str]) -> tuple[dict[str, str], list[str]]:
    """The command's first arguments, which have no key, such as RUN; and the other arguments."""
    from lmkit.config.grammar import ASSIGNMENT

    words: dict[str, str] = {}
    for name in command.words:
        first = argv[0] if argv else "-"
        if first.startswith("-") or (ASSIGNMENT.match(first) and not Path(first).is_dir()):
            if name in command.optional:
                continue
            from lmkit.overview import RUN

            before = f", before {redact(first)}" if argv else ""
            what = RUN if name == "run" else name
            raise UserError(f"lmkit {command.name} needs a {what}{before}")
        words[name], argv = first, argv[1:]
    return words, argv


def _find_run(argv: list[str], which: str, lacks: str | None) -> Any:
    """The run that RUN names, looked up in `outputs=`; lacks: the name of a function in `run`."""
    from lmkit import run

    places = [each.partition("=")[2] for each in argv if key_of(each) == "outputs" and "=" in each]
    outputs = places[-1] if places else "outputs"
    return run.Run.find(outputs, which, getattr(run, lacks) if lacks else None)


def _config_name(words: dict[str, str]) -> str:
    """The name of a command's primary config: that of its first word, if any, else train."""
    from lmkit.config.groups import CONF

    return next((word for word in words.values() if (CONF / f"{word}.yaml").is_file()), "train")


def _show(argv: list[str], name: str) -> None:
    """Answer Hydra's flags for a command line: lmkit itself prints the config with the defaults of
    its classes, Hydra does all else."""
    import hydra

    from lmkit.config.compose import check_config_name
    from lmkit.config.grammar import hydra_arguments, parse_flags
    from lmkit.config.groups import CONF, config_folders, installed_folders

    flags = parse_flags(argv)
    if flags.cfg == "job":
        from lmkit.config.full_config import full_config

        print(redact(full_config(argv, name)))
        return
    check_config_name(flags.config_name or name, config_folders(flags.config_dir))
    logging.getLogger().handlers.clear()  # Hydra brings its own
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it warns where there is no home
    logging.raiseExceptions = False  # `| head` has seen enough
    arguments = hydra_arguments(argv)
    if places := ",".join(f"'file://{folder}'" for folder in installed_folders()):
        # Beside the other overrides, as argparse wants them.
        first = next((at for at, a in enumerate(argv) if a in flags.overrides), len(argv))
        arguments.insert(first, f"hydra.searchpath=[{places}]")
    before, sys.argv = sys.argv, ["lmkit", *arguments]
    try:
        hydra.main(config_path=str(CONF), config_name=name, version_base="1.3")(_nothing)()
    finally:
        sys.argv = before


def _nothing(config: Any) -> None:
    """Does nothing: Hydra's flags only print."""
