"""The facade has PopTorch 3.4's names, parameters, defaults and enumerations, or says in the docs why not.

`tests/assets/poptorch-api.json` lists the public names of PopTorch's Python package with their signatures.
"""

from __future__ import annotations

import functools
import inspect
import json
import re
from pathlib import Path
from typing import Any

import pytest

import bert_ipu.simulator.poptorch as poptorch

FACTS: dict[str, dict[str, Any]] = json.loads(
    (Path(__file__).parents[1] / "assets/poptorch-api.json").read_text()
)
DOCS = Path(__file__).parents[2] / "docs/simulator.md"


def _absent() -> dict[str, str]:
    """Names that docs/simulator.md lists as absent, with the reason."""
    section = DOCS.read_text().split("## Absent names", 1)[1].split("\n## ", 1)[0]
    rows = re.findall(r"^\| `([\w.]+)` \| (.+?) \|$", section, flags=re.MULTILINE)
    return {f"poptorch.{name}": reason for name, reason in rows}


ABSENT = _absent()
PRESENT = sorted(FACTS.keys() - ABSENT.keys())


def _find(name: str) -> Any:
    return functools.reduce(getattr, name.split(".")[1:], poptorch)


def _parameters(function: Any) -> list[list[Any]]:
    described = []
    for parameter in inspect.signature(function).parameters.values():
        default = None
        if parameter.default is not inspect.Parameter.empty:
            value = parameter.default
            default = "<function <lambda>>" if inspect.isfunction(value) else repr(value)
            if re.fullmatch(r"<\w+\.\w+: (.*)>", default):
                default = repr(value.value)
        described.append([parameter.name, parameter.kind.name.lower(), default])
    return described


@pytest.mark.parametrize("name", [name for name in PRESENT if FACTS[name]["kind"] == "function"])
def test_function_has_poptorchs_parameters(name: str) -> None:
    assert _parameters(_find(name)) == FACTS[name]["parameters"]


@pytest.mark.parametrize("name", [name for name in PRESENT if FACTS[name]["kind"] == "enum"])
def test_enumeration_has_poptorchs_values(name: str) -> None:
    assert {member.name: member.value for member in _find(name)} == FACTS[name]["values"]


@pytest.mark.parametrize("name", [name for name in PRESENT if FACTS[name]["kind"] == "class"])
def test_class_has_poptorchs_members(name: str) -> None:
    found = _find(name)
    assert inspect.isclass(found)
    for member, expected in FACTS[name]["members"].items():
        if f"{name}.{member}" in ABSENT:
            continue
        value = inspect.getattr_static(found, member)
        if expected == "property":
            assert isinstance(value, property), member
        else:
            assert _parameters(getattr(found, member)) == expected, member


def test_every_kind_of_fact_is_checked() -> None:
    assert {fact["kind"] for fact in FACTS.values()} == {"function", "enum", "class"}


def test_names_listed_as_absent_are_poptorchs_and_absent() -> None:
    for name, reason in ABSENT.items():
        assert name in FACTS, f"{name} is no public name of PopTorch"
        assert len(reason) > 10, f"{name} is listed without a reason"
        with pytest.raises(AttributeError):
            _find(name)
