"""The commands, described from their source text without importing them."""

import ast
import importlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from keyword import iskeyword
from pathlib import Path
from typing import Any

from lmkit.errors import UserError
from lmkit.system.allowed import (
    ABSENT,
    COMMANDS,
    PREFIXES,
    installed,
    remedy,
    under,
    users_prefixes,
)
from lmkit.system.source import source_of

log = logging.getLogger(__name__)

PACKAGE = Path(__file__).with_name("commands")
MODULES = {
    "prepare": "prepare",
    "train": "train",
    "resume": "train",
    "sweep": "sweep",
    "reproduce": "reproduce",
    "evaluate": "evaluate",
    "generate": "generate",
    "score": "score",
    "analyze": "analyze",
    "dashboard": "dashboard",
    "verify": "verify",
    "doctor": "doctor",
    "list": "list",
    "completion": "completion",
    "import": "import_model",
    "export": "export",
    "harness": "harness",
}
# Parameters of a command that the command line does not spell out.
PROVIDED = (
    *("config", "composition", "search", "overrides", "selected", "config_dir", "commands"),
)


@dataclass(frozen=True)
class Command:
    """A command: its arguments and docstring, read from its source text."""

    name: str
    module: str
    function: str
    positional: tuple[str, ...]
    own: dict[str, tuple[str, str | None]]  # annotation and default, as written
    doc: str
    optional: tuple[str, ...] = ()  # words that may be left out
    run_lacks: str | None = None  # of `run: Annotated[Run, NAME]`, what `latest` must not lack

    @property
    def purpose(self) -> str:
        """The first line of the docstring."""
        return self.doc.partition("\n")[0]

    @property
    def words(self) -> tuple[str, ...]:
        """The arguments without a key with which the command line must begin."""
        return tuple(name for name in self.positional if name not in PROVIDED)

    @property
    def takes_config(self) -> bool:
        """Whether keys of a config can be set on the command line."""
        return "config" in self.positional or "composition" in self.positional

    @property
    def flags(self) -> list[str]:
        """The flags that the command has."""
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
        return getattr(importlib.import_module(self.module), self.function)


def commands() -> dict[str, Command]:
    """Every command, in the order of MODULES, and then those of installed packages."""
    known = {
        name: _of_source(name, f"lmkit.commands.{module}", *_named(name, module))
        for name, module in MODULES.items()
    }
    for entry in installed(COMMANDS):
        try:
            if entry.name in known:
                raise UserError("there is one of this name already")
            known[entry.name] = _located(entry.name, entry.module, entry.attr)
        except UserError as error:
            log.warning("the command %s of %s is left out: %s", entry.name, entry.value, error)
    return known


def _named(name: str, module: str) -> tuple[str, ast.Module]:
    """A command's function, whose name is the module's where Python keeps the command's for itself,
    and the module's source."""
    return module if iskeyword(name) else name, _tree(PACKAGE / f"{module}.py")


def users_command(path: str) -> Command:
    """The function of a user's own package that a dotted path names, as a command."""
    module, _, function = path.rpartition(".")
    if under(path, PREFIXES) or not under(path, users_prefixes()):
        raise UserError(f"lmkit {path}: no such command{remedy(path)}")
    return _located(path, module, function)


def _located(name: str, module: str, function: str) -> Command:
    """A command by where its function is; raises UserError where there is none."""
    found = source_of(module)
    if found is None:
        raise UserError(f"{module} does not exist{ABSENT}")
    return _of_source(name, module, function, found.tree)


def _tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def _of_source(name: str, module: str, function: str, tree: ast.Module) -> Command:
    """A command's signature and docstring, from its module's source."""
    functions = (node for node in tree.body if isinstance(node, ast.FunctionDef))
    found = next((node for node in functions if node.name == function), None)
    if found is None:
        raise UserError(f"{module} has no function {function}")
    arguments = found.args
    own = {}
    for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        hint = ast.unparse(argument.annotation) if argument.annotation else ""
        own[argument.arg] = (hint, ast.unparse(default) if default else None)
    positional = tuple(argument.arg for argument in arguments.args)
    optional = positional[len(positional) - len(arguments.defaults) :]
    doc = ast.get_docstring(found) or ""
    lacks = _run_lacks(arguments.args)
    return Command(name, module, function, positional, own, doc, optional, lacks)


def _run_lacks(arguments: Sequence[ast.arg]) -> str | None:
    """NAME of an argument `run: Annotated[Run, NAME]`."""
    for argument in arguments:
        match argument:
            case ast.arg("run", ast.Subscript(slice=ast.Tuple([_, ast.Name(lacks)]))):
                return lacks
    return None
