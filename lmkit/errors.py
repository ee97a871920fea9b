"""What ends a command: a mistake that the user can mend, or a result that is bad."""

from typing import Any


class UserError(Exception):
    """A mistake in config, path or data: says what, where, found and expected, and the remedy."""


class ResultError(Exception):
    """A command has done its work, and what came of it is a failure.

    result: what the command would have returned. exit_code: of the process.
    """

    def __init__(self, message: str, result: Any, exit_code: int = 1) -> None:
        super().__init__(message)
        self.result = result
        self.exit_code = exit_code


def exit_code(error: BaseException) -> int:
    """Of the process that an error ends: 2 for the user's mistakes, 130 or 143 for a signal."""
    if isinstance(error, UserError):
        return 2
    return int(getattr(error, "exit_code", 1))
