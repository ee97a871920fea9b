"""The search space of a sweep: keys with several values on the command line, in Hydra's syntax."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice, product
from pathlib import Path
from typing import Any

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, RangeSweep
from hydra.errors import HydraException

from lmkit.config.as_typed import parts
from lmkit.config.grammar import ASSIGNMENT, normalise, parse_flags
from lmkit.config.groups import config_folders, group_options
from lmkit.config.mistakes import first_lines, nearest
from lmkit.errors import UserError

# Keys that the sweep sets for each trial.
NAMING = ("outputs", "name", "run_id")
MOST = 10_000  # values of a key
GOLDEN = 0.382  # of an interval: a value there is hardly ever a whole number


@dataclass(frozen=True)
class Dimension:
    """A key and its possible values: `values` in Hydra's grammar, or any number from low to high.

    source: the argument that it comes from. If low is an int, only whole numbers are possible.
    """

    key: str
    source: str
    values: tuple[str, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False

    @property
    def size(self) -> float:
        """The number of values, which may be infinite."""
        if self.values:
            return len(self.values)
        return self.high - self.low + 1 if isinstance(self.low, int) else math.inf

    def argument(self, value: object) -> str:
        """The command-line argument that gives the key this value."""
        return f"{self.source.partition('=')[0]}={value}"

    def examples(self) -> tuple[object, ...]:
        """Values to check a config with, in order: all of a list, or some of an interval."""
        if self.values:
            return self.values
        if isinstance(self.low, int):
            return (self.low, self.high)
        inside = self.low + GOLDEN * (self.high - self.low)
        return (self.low, self.high, float(f"{inside:.5g}"))


@dataclass(frozen=True)
class Search:
    """A sweep's search space: its dimensions, the arguments that all trials share, the command's
    own arguments, and Hydra's flags."""

    dimensions: tuple[Dimension, ...]
    fixed: tuple[str, ...]
    own: tuple[str, ...]
    flags: tuple[str, ...]

    def arguments(self, values: Sequence[object]) -> list[str]:
        """The command line of a trial, with one value for each dimension."""
        varied = [d.argument(value) for d, value in zip(self.dimensions, values, strict=True)]
        return [*self.flags, *self.fixed, *varied]

    def distinct(self, shown: Mapping[str, Mapping[str, Any]]) -> Search:
        """The search without duplicate values, such as 0 and 0.0 where a key is a float.

        shown: by key and value, the value in the config.
        """
        dimensions = []
        for dimension in self.dimensions:
            known = shown.get(dimension.key, {})
            first = {repr(known.get(v, v)): v for v in reversed(dimension.values)}
            kept = tuple(v for v in dimension.values if v in first.values())
            dimensions.append(replace(dimension, values=kept))
        return replace(self, dimensions=tuple(dimensions))

    def first(self) -> list[str]:
        """The command line with the first value of each dimension."""
        return self.arguments([dimension.examples()[0] for dimension in self.dimensions])

    def grid(self) -> list[dict[str, str]]:
        """All combinations, the last key varying fastest; raises UserError for intervals."""
        if endless := [d.key for d in self.dimensions if not d.values]:
            raise UserError(
                f"sampler=grid: {', '.join(endless)} can be any number of an interval; list some "
                f"as {endless[0]}=1,2,3 or take sampler=random or sampler=tpe"
            )
        keys = [dimension.key for dimension in self.dimensions]
        points = product(*(dimension.values for dimension in self.dimensions))
        return [dict(zip(keys, point, strict=True)) for point in points]


def split(argv: Sequence[str], own: Collection[str]) -> Search:
    """Split a command line into keys with several values and the rest; `own`: the command's keys.

    `sweep=NAME` stands for the lines of `sweep/NAME.yaml`; the command line comes after them.
    Raises UserError.
    """
    flags = parse_flags(argv)
    folders = config_folders(flags.config_dir)
    options = group_options(folders)
    arguments: list[str] = []
    for argument in flags.overrides:
        key, _, value = argument.partition("=")
        arguments += _preset(value, folders, options) if key == "sweep" else [argument]
    dimensions: dict[str, Dimension] = {}
    fixed: dict[str, str] = {}
    own_arguments = []
    for argument in arguments:
        match = ASSIGNMENT.match(argument)
        key = match["key"] if match else argument
        if key in own:
            own_arguments.append(argument)
            continue
        override = _parse(argument, options) if match else None
        dimensions.pop(key, None)  # the last line that sets a key wins
        fixed.pop(key, None)
        if match and override and override.is_sweep_override():
            dimensions[key] = _dimension(key, argument, override)
        else:
            fixed[key] = argument
    if not dimensions:
        for argument in fixed.values():
            _check_grammar(argument, options)
        raise UserError(
            "lmkit sweep needs a key with several values, as model.hidden_size=200,400 or "
            "optimizer.lr='tag(log,interval(1e-4,1e-2))', or a preset sweep=NAME"
        )
    kept = tuple(argument for argument in argv if argument not in flags.overrides)
    return Search(tuple(dimensions.values()), tuple(fixed.values()), tuple(own_arguments), kept)


def _preset(name: str, folders: Sequence[Path], options: dict[str, list[str]]) -> list[str]:
    there = options.get("sweep", [])
    if name not in there:
        raise UserError(f"sweep={name}: no such option of sweep; {nearest(name, there)}")
    file = next(f for folder in reversed(folders) if (f := folder / f"sweep/{name}.yaml").is_file())
    try:
        lines = yaml.load(file.read_text(encoding="utf-8"), yaml.BaseLoader)  # as written
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{file}: not a readable sweep: {error}") from error
    if not isinstance(lines, dict) or not all(isinstance(v, str) for v in lines.values()):
        raise UserError(
            f"{file}: expected a line `key: values` for each key, values as on the command line"
        )
    return [f"{key}={value}" for key, value in lines.items()]


def _parse(argument: str, options: Collection[str]) -> Override | None:
    """The override of an argument; None for a mistake, which `compose` will report."""
    try:
        return OverridesParser.create().parse_override(normalise(argument, options))
    except HydraException:
        return None


def _check_grammar(argument: str, options: Collection[str]) -> None:
    try:
        OverridesParser.create().parse_override(normalise(argument, options))
    except HydraException as error:
        raise UserError(f"{argument}: {first_lines(error)}") from error


def _dimension(key: str, source: str, override: Override) -> Dimension:
    if key in NAMING:
        raise UserError(f"{source}: a sweep names its trials itself; give one value")
    value = override.value()
    if isinstance(value, IntervalSweep):
        whole = isinstance(value.start, int) or "int" in value.tags
        low, high = (int(end) if whole else float(end) for end in (value.start, value.end))  # type: ignore[arg-type]
        log = "log" in value.tags
        if not low < high or (log and low <= 0):
            above = " from above 0" if log else ""
            raise UserError(f"{source}: an interval goes up{above}, found {low} to {high}")
        return Dimension(key, source, low=low, high=high, log=log)
    if not isinstance(value, ChoiceSweep | RangeSweep) or value.shuffle:
        raise UserError(f"{source}: a sweep takes a list a,b or choice, range, interval")
    check_values(source, override)
    read = list(map(str, override.sweep_string_iterator()))
    written = parts(source.partition("=")[2]) if isinstance(value, ChoiceSweep) else []
    if len(written) != len(read):  # choice(..), range(..)
        written = read
    # Keep the first of two spellings of one value, as spelled: the key may be one of text.
    values: dict[str, str] = {}
    for each, text in zip(read, written, strict=True):
        values.setdefault(each, text)
    return Dimension(key, source, tuple(values.values()))


def check_values(source: str, override: Override) -> None:
    """Raise UserError if a list, a range or a glob has no values, or too many."""
    value = override.value()
    try:
        values = value.range() if isinstance(value, RangeSweep) else override.sweep_iterator()
        number = sum(1 for _ in islice(values, MOST + 1))
    except (ValueError, ArithmeticError, HydraException) as error:
        what = "a range goes from one number to another in steps other than 0"
        raise UserError(f"{source}: {what}") from error
    if number == 0:
        raise UserError(f"{source}: there is no such value, and so nothing to run")
    if number > MOST:
        raise UserError(f"{source}: has more than {MOST:,} values; name fewer")
