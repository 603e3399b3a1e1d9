"""Straight-line code of the runtime: instructions over named values, and the Python function made of them.

An interpreter of the graph costs twice as much per operator as generated code, which in small models is more
than the arithmetic.
"""

from __future__ import annotations

import keyword
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass(frozen=True)
class Name:
    """A value of the generated code."""

    text: str

    def __repr__(self) -> str:
        return self.text

    @property
    def is_run(self) -> bool:
        """Whether it is (part of) the argument that changes from chunk to chunk."""
        return self.text.split(".")[0] == "run"


RUN = Name("run")
"""The argument of the generated function that carries what changes from chunk to chunk."""


@dataclass
class Instruction:
    """results = function(*args, **kwargs)."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    results: tuple[Name, ...]
    unpack: bool = False
    """Whether the function returns a tuple that is taken apart."""
    pure: bool = True
    label: str = ""
    hoistable: bool = True
    """False where a later instruction writes into the result again."""

    def reads(self) -> set[Name]:
        return set(names_in(self.args)) | set(names_in(self.kwargs))


def names_in(value: Any) -> list[Name]:
    """Every name inside nested tuples, lists and dicts."""
    if isinstance(value, Name):
        return [value]
    if isinstance(value, dict):
        return [name for item in value.values() for name in names_in(item)]
    if isinstance(value, (tuple, list)):
        return [name for item in value for name in names_in(item)]
    return []


@dataclass
class Code:
    """A function under construction: parameters, instructions in order, and what it returns."""

    title: str
    instructions: list[Instruction] = field(default_factory=list)
    counter: int = 0

    def fresh(self) -> Name:
        self.counter += 1
        return Name(f"{self.title[0]}{self.counter}")

    def emit(
        self, function: Callable[..., Any], /, *args: Any, pure: bool = True, label: str = "", **kwargs: Any
    ) -> Name:
        """Append a call with one result and return the result's name."""
        result = self.fresh()
        self.instructions.append(Instruction(function, args, kwargs, (result,), pure=pure, label=label))
        return result

    def emit_tuple(
        self,
        count: int,
        function: Callable[..., Any],
        /,
        *args: Any,
        pure: bool = True,
        label: str = "",
        **kwargs: Any,
    ) -> tuple[Name, ...]:
        """Append a call that returns `count` values."""
        results = tuple(self.fresh() for _ in range(count))
        self.instructions.append(Instruction(function, args, kwargs, results, True, pure, label))
        return results


def remove_unused(instructions: Sequence[Instruction], results: Sequence[Name]) -> list[Instruction]:
    """The instructions that have an effect or lead to a result, in order."""
    needed, kept = set(results), []
    for instruction in reversed(instructions):
        if not instruction.pure or needed & set(instruction.results):
            needed |= instruction.reads()
            kept.append(instruction)
    return kept[::-1]


def generate(
    title: str, parameters: Sequence[Name], instructions: Sequence[Instruction], results: Sequence[Name]
) -> tuple[Callable[..., tuple[Any, ...]], str]:
    """Compile instructions to a Python function(run, values) -> results, and its source.

    `values` is a sequence in the order of `parameters`.  A value is dropped right after its last use, so that
    the allocator can give its memory to the next one.
    """
    places: dict[int, str] = {}
    bound: dict[str, Any] = {_PLACES: places}
    lines = [f"def {title}(run, values):"]
    last = _last_uses(instructions, results)
    if parameters:
        lines.append(f"    {', '.join(p.text for p in parameters)}, = values")
    for position, instruction in enumerate(instructions):
        lines.append(f"    {_assignment(instruction)}{_call(instruction, bound)}")
        places[len(lines)] = instruction.label
        dead = [name.text for name in last.get(position, ())]
        if dead:
            lines.append(f"    {' = '.join(dead)} = None")
    lines.append(f"    return ({''.join(name.text + ', ' for name in results)})")
    source = "\n".join(lines)
    exec(compile(source, f"<{title}>", "exec"), bound)
    return bound[title], source


def place_of(error: Exception) -> str:
    """The label of the instruction that raised an error; empty where none did, or it has none."""
    calls = list(traceback.walk_tb(error.__traceback__))[::-1]
    labels = (frame.f_globals.get(_PLACES, {}).get(line, "") for frame, line in calls)
    return next(filter(None, labels), "")


_PLACES = "__places__"
"""What generated functions call their table of labels, by line."""


def _last_uses(instructions: Sequence[Instruction], results: Sequence[Name]) -> dict[int, list[Name]]:
    """For each position, the values that nothing reads afterwards."""
    seen = set(results)
    last: dict[int, list[Name]] = {}
    for position in range(len(instructions) - 1, -1, -1):
        instruction = instructions[position]
        for name in sorted(instruction.reads() | set(instruction.results), key=lambda name: name.text):
            if name not in seen and not name.is_run:
                seen.add(name)
                last.setdefault(position, []).append(name)
    return last


def _assignment(instruction: Instruction) -> str:
    return f"{', '.join(name.text for name in instruction.results)}{',' if instruction.unpack else ''} = "


def _call(instruction: Instruction, bound: dict[str, Any]) -> str:
    function = _bind(instruction.function, bound)
    arguments = [_argument(value, bound) for value in instruction.args]
    arguments += [f"{key}={_argument(value, bound)}" for key, value in instruction.kwargs.items()]
    label = f"  # {instruction.label}" if instruction.label else ""
    return f"{function}({', '.join(arguments)}){label}"


def _bind(value: Any, bound: dict[str, Any]) -> str:
    """The name that generated code calls a function (or other constant) by."""
    stem = (
        getattr(value, "__name__", type(value).__name__).split(".")[0].strip("_").replace("<lambda>", "call")
    )
    # Names of parameters and of results (a letter and a number) are the generated function's own.
    taken = stem in ("run", "values") or stem[1:].isdigit()
    stem = stem if stem.isidentifier() and not keyword.iskeyword(stem) and not taken else "value"
    name, count = stem, 1
    while name in bound and bound[name] is not value:
        count += 1
        name = f"{stem}_{count}"
    bound[name] = value
    return name


def _argument(value: Any, bound: dict[str, Any]) -> str:
    if isinstance(value, Name):
        return value.text
    if isinstance(value, (bool, int, str)) or value is None:
        return repr(value)
    if isinstance(value, float):
        return repr(value) if value == value and abs(value) != float("inf") else f"float({str(value)!r})"
    if isinstance(value, list):
        return f"[{', '.join(_argument(item, bound) for item in value)}]"
    if isinstance(value, tuple):
        return f"({''.join(_argument(item, bound) + ', ' for item in value)})"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key!r}: {_argument(item, bound)}' for key, item in value.items())}}}"
    if isinstance(value, torch.Tensor):
        raise TypeError("a tensor constant must be a variable of the program")
    return _bind(value, bound)
