"""The one exception that means the user can mend it."""


class UserError(Exception):
    """A mistake in config, path or data: says what, where, found and expected, and the remedy."""
