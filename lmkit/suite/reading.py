"""Reads a suite in any of the formats, by the keys of `lmkit evaluate`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lmkit.errors import UserError
from lmkit.suite import blimp, lines, syntaxgym, table
from lmkit.suite.blimp import Method
from lmkit.suite.items import Suite

Format = Literal["blimp", "syntaxgym", "table", "lines"]


@dataclass(frozen=True)
class Source:
    """Where a suite is, in which format, and what to compare; None is what the format has."""

    format: Format
    path: str | None
    method: Method | None = None
    good: str | None = None
    bad: str | None = None
    group: str | None = None

    def read(self) -> Suite:
        """The suite; raises UserError if a key does not go with the format, or for bad files."""
        if self.path is None:
            raise UserError(f"suite={self.format} needs path=DIR or path=FILE: where the suite is")
        for key, format in {
            "method": "blimp",
            **dict.fromkeys(("good", "bad", "group"), "table"),
        }.items():
            value = getattr(self, key)
            if value is not None and self.format != format:
                raise UserError(f"{key}={value} is for suite={format}: leave it out")
        match self.format:
            case "blimp":
                return blimp.read(self.path, self.method or "simple")
            case "syntaxgym":
                return syntaxgym.read(self.path)
            case "table":
                return table.read(self.path, self.good or "good", self.bad or "bad", self.group)
        return lines.read(self.path)
