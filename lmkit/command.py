"""The commands, described from their source text without importing them."""

import ast
import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).with_name("commands")
MODULES = {
    "prepare": "prepare",
    "train": "train",
    "resume": "train",
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
# Parameters of a command that the command line does not spell out.
PROVIDED = (
    *("config", "composition", "search", "overrides", "selected", "config_dir", "commands"),
)


@dataclass(frozen=True)
class Command:
    """A command: its arguments and docstring, read from its source text."""

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
        """The command's function, imported."""
        return getattr(importlib.import_module(self.module), self.name)


def commands() -> dict[str, Command]:
    """Every command, in the order of MODULES."""
    return {name: _read(name, PACKAGE / f"{module}.py") for name, module in MODULES.items()}


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
    return Command(
        name, f"lmkit.commands.{file.stem}", positional, own, doc, _run_lacks(arguments.args)
    )


def _run_lacks(arguments: Sequence[ast.arg]) -> str | None:
    """NAME of an argument `run: Annotated[Run, NAME]`."""
    for argument in arguments:
        match argument:
            case ast.arg("run", ast.Subscript(slice=ast.Tuple([_, ast.Name(lacks)]))):
                return lacks
    return None
