"""The base of PopTorch's option groups: named, typed values that can be frozen."""

from __future__ import annotations

import copy
import datetime
import difflib
from typing import Any

from tqdm import tqdm

from ._logging import logger

FROZEN = (
    "Can't modify frozen Options: a model or a data loader already uses them. Change them before, or give the next "
    "model its own: options.clone()."
)


def require(value: Any, kind: type) -> None:
    """Raise AssertionError, as PopTorch's options do, for an argument of another type."""
    assert isinstance(value, kind), f"{value!r} is no {kind.__name__}"


class OptionsDict:
    """Named values read as attributes; `set` keeps their types, and nothing can be set while frozen.

    Names that start with an underscore are ordinary attributes, and only `__init__` makes new ones.
    """

    def __init__(self, **default_values: Any) -> None:
        self._warnings: dict[str, str] = {}
        self._warnings_disabled: set[str] = set()
        self._is_frozen = False
        self._values = default_values

    def set(self, **kwargs: Any) -> None:
        """Give existing options new values of the same type."""
        self.checkIsFrozen()
        unknown = kwargs.keys() - self._values.keys()
        assert not unknown, f"There is no option {', '.join(unknown)}; there are {', '.join(self._values)}"
        self.createOrSet(**kwargs)

    def createOrSet(self, **kwargs: Any) -> None:
        """As `set`, for options that may not exist yet."""
        self.checkIsFrozen()
        for option, value in kwargs.items():
            expected = type(self._values.get(option, value))
            assert isinstance(value, expected), (
                f"Option {option} is {value!r}, and must be of type {expected.__name__}"
            )
            self._values[option] = value

    def exists(self, option: str) -> bool:
        """Whether the option has a value."""
        return option in self._values

    def deleteIfExists(self, option: str) -> None:
        """Forget the option's value."""
        self._values.pop(option, None)

    def _set_frozen(self, frozen: bool) -> None:
        self.__dict__["_is_frozen"] = frozen
        for value in self.__dict__.values():
            if "_is_frozen" in getattr(value, "__dict__", ()):
                value.__dict__["_is_frozen"] = frozen

    def _freeze(self) -> None:
        self._set_frozen(True)

    def _unfreeze(self) -> None:
        self._set_frozen(False)

    def checkIsFrozen(self, option: str | None = None) -> None:
        """Raise AttributeError if these options are in use."""
        if option != "_is_frozen" and self.__dict__.get("_is_frozen", False):
            raise AttributeError(FROZEN)

    def __deepcopy__(self, memory: dict[int, Any]) -> OptionsDict:
        copied = type(self).__new__(type(self))
        memory[id(self)] = copied
        for name, value in self.__dict__.items():
            copied.__dict__[name] = False if name == "_is_frozen" else copy.deepcopy(value, memory)
        return copied

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    def __setattr__(self, option: str, value: Any) -> None:
        if option == "__class__":
            object.__setattr__(self, option, value)
            return
        self.checkIsFrozen(option)
        if not option.startswith("_"):
            self.set(**{option: value})
            return
        if "_values" in self.__dict__ and option not in self.__dict__:
            raise AttributeError(f"{type(self).__name__} has no attribute {option}, and takes no new ones")
        object.__setattr__(self, option, value)

    def __getattr__(self, option: str) -> Any:
        values = self.__dict__.get("_values", {})
        if option not in values:
            alike = difflib.get_close_matches(option, [*values, *dir(type(self))])
            meant = f" Did you mean {' or '.join(alike)}?" if alike else ""
            raise AttributeError(f"{type(self).__name__} has no option {option}.{meant}")
        return values[option]

    def update(self, other: dict[str, Any]) -> dict[str, Any]:
        """Add these options to `other`; no name may be in both."""
        for option, warning in self._warnings.items():
            if option not in self._warnings_disabled:
                logger.warning(warning)
        both = self._values.keys() & other
        assert not both, f"Two groups of options have {', '.join(sorted(both))}"
        other.update(self._values)
        return other

    def toDict(self) -> dict[str, Any]:
        """The options as a new dict."""
        return self.update({})

    def __call__(self, option: str) -> Any:
        return getattr(self, option)

    def __repr__(self) -> str:
        shown = {
            **self._values,
            **{name: value for name, value in self.__dict__.items() if name != "_values"},
        }
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in shown.items())})"


class ProgressBar:
    """Shows how far a compilation has come, and keeps how long it took."""

    def __init__(self) -> None:
        self.compilation_time: datetime.timedelta | None = None
        self._start: datetime.datetime | None = None
        self._bar: Any = None

    def __call__(self, progress: int, total: int) -> None:
        if self._bar is None:
            self._start = datetime.datetime.now()
            self._bar = tqdm(
                desc="Graph compilation",
                total=total,
                bar_format="{desc}: {percentage:3.0f}%|{bar}| {elapsed}, {remaining} left",
            )
        assert self._start is not None, "the bar and its start time are set together"
        self._bar.update(progress - self._bar.n)
        self.compilation_time = datetime.datetime.now() - self._start
        if progress == total:
            self._bar.close()
            self._bar = None

    def __deepcopy__(self, memory: dict[int, Any]) -> ProgressBar:
        return ProgressBar()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_bar": None}
