"""The mistakes a user can make: each message says what was given, what is allowed and what to change."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Iterator


class UserError(Exception):
    """A mistake of the user, not of the program; scripts print its message and exit with status 2."""


class ConfigError(UserError):
    """A configuration that cannot work."""


class DataError(UserError):
    """Input data that is missing, damaged or does not fit."""


@contextlib.contextmanager
def writing_to(folder: Path, setting: str = "train.output_dir") -> Iterator[None]:
    """Report what the system refuses to write into `folder` as the mistake it is; `setting` names the folder."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{folder} cannot be written ({error}). Make room there, or give {setting} another folder, which "
            f"can be written.") from error


class DivergedError(UserError):
    """Training whose numbers have overflowed; its settings ask for too large steps or too few bits."""
