"""The mistakes a user can make: each message says what was given, what is allowed and what to change."""

from __future__ import annotations


class UserError(Exception):
    """A mistake of the user, not of the program; scripts print its message and exit with status 2."""


class ConfigError(UserError):
    """A configuration that cannot work."""


class DataError(UserError):
    """Input data that is missing, damaged or does not fit."""


class DivergedError(UserError):
    """Training whose numbers have overflowed; its settings ask for too large steps or too few bits."""
