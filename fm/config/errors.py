"""Errors that reach the user as one line."""

from __future__ import annotations


class UserError(ValueError):
    """A fault the user can mend; its message is one line: what was wrong, where, and what to do.

    The command line prints the message alone and exits with 1; the traceback goes into ``events.log`` of the run.
    """


class ConfigError(UserError):
    """A configuration value, key or group that cannot be used."""


def at_least(name: str, value: int, least: int) -> None:
    """Refuse a count below its range.

    Raises:
        ConfigError: `value` is below `least`.
    """
    if value < least:
        raise ConfigError(f"{name}={value} must be at least {least}")
