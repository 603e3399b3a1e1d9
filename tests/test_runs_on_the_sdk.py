"""The flat modules fit the real SDK: PopTorch 3.4's names and arguments, torch 2.0.1's names.

The facts lie in tests/assets: `poptorch-api.json` (public names of PopTorch 3.4 with their parameters) and
`torch-2.0.1-names.json` (public names of the torch release that the SDK pins).
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
ASSETS = Path(__file__).parent / "assets"
FILES = sorted([*(ROOT / "bert_ipu").glob("*.py"), *ROOT.glob("run_*.py")])
POPTORCH: dict[str, Any] = json.loads((ASSETS / "poptorch-api.json").read_text())
TORCH: dict[str, set[str]] = {
    module: set(names)
    for module, names in json.loads((ASSETS / "torch-2.0.1-names.json").read_text())["names"].items()
}
# Names that newer torch gave its tensors but that our configuration, paths and arrays have too.
SHARED_WITH_OTHER_TYPES = {"ipu", "name", "index", "nbytes", "itemsize"}
# camelCase methods of the standard library that the application calls.
STANDARD_LIBRARY = {"getLogger", "basicConfig", "setLevel", "addHandler", "setFormatter", "isEnabledFor"}
# popdist's functions take no arguments but these (source: poprun and popdist documentation).
POPDIST = {
    "init",
    "isPopdistEnvSet",
    "getNumTotalReplicas",
    "getNumLocalReplicas",
    "getNumInstances",
    "getInstanceIndex",
    "getReplicaIndexOffset",
    "getNumIpusPerReplica",
    "getDeviceId",
    "execute_on_instances",
    "isBackendInitialized",
    "poptorch",
    "poptorch.Options",
}


def dotted(node: ast.AST) -> str:
    """`a.b.c` of an attribute chain that starts at a plain name, else an empty string."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(parts)]) if isinstance(node, ast.Name) else ""


def chains(tree: ast.AST, root: str) -> Iterator[tuple[str, ast.AST]]:
    """Every longest attribute chain below the module `root`, with its node."""
    inner = {id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Attribute)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and id(node) not in inner:
            name = dotted(node)
            if name.split(".")[0] == root:
                yield name, node


def api_entry(name: str) -> Any:
    """The recorded entry of a dotted PopTorch name, its class members and enum values included."""
    if name in POPTORCH:
        return POPTORCH[name]
    owner, _, member = name.rpartition(".")
    entry = POPTORCH.get(owner)
    if entry is None:
        return None
    if entry["kind"] == "enum":
        return {"kind": "value"} if member in entry["values"] else None
    parameters = entry.get("members", {}).get(member)
    return None if parameters is None else {"kind": "function", "parameters": parameters}


def call_parameters(entry: dict[str, Any]) -> list[list[Any]] | None:
    """Parameters of calling the entry, without `self`; None where the facts do not record them."""
    parameters = entry.get("parameters")
    if entry["kind"] == "class":
        parameters = entry["members"].get("__init__")
    return None if parameters is None else [p for p in parameters if p[0] not in {"self", "cls"}]


def argument_problem(call: ast.Call, parameters: list[list[Any]]) -> str:
    """Why the call does not fit the parameters, or an empty string."""
    kinds = {p[1] for p in parameters}
    names = {p[0] for p in parameters if p[1] in {"positional_or_keyword", "keyword_only"}}
    positional = [p for p in parameters if p[1] in {"positional_or_keyword", "positional_only"}]
    given = {k.arg for k in call.keywords if k.arg is not None}
    if "var_keyword" not in kinds and given - names:
        return f"unknown argument {sorted(given - names)}"
    if "var_positional" not in kinds and len(call.args) > len(positional):
        return f"{len(call.args)} positional arguments, {len(positional)} allowed"
    open_ended = any(isinstance(a, ast.Starred) for a in call.args) or any(
        k.arg is None for k in call.keywords
    )
    required = [p[0] for p in positional[len(call.args) :] if p[2] is None and p[0] not in given]
    return f"missing {required}" if required and not open_ended else ""


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_uses_only_names_and_arguments_of_poptorch(path: Path) -> None:
    tree = ast.parse(path.read_text())
    calls = {id(n.func): n for n in ast.walk(tree) if isinstance(n, ast.Call)}
    problems = []
    for name, node in chains(tree, "poptorch"):
        entry = api_entry(name)
        if entry is None:
            problems.append(f"{path.name}:{node.lineno} {name} is not in PopTorch 3.4")  # type: ignore[attr-defined]
        elif id(node) in calls and (parameters := call_parameters(entry)) is not None:
            problem = argument_problem(calls[id(node)], parameters)
            if problem:
                problems.append(f"{path.name}:{node.lineno} {name}: {problem}")  # type: ignore[attr-defined]
    assert not problems


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_uses_only_functions_of_popdist(path: Path) -> None:
    used = {name.partition(".")[2] for name, _ in chains(ast.parse(path.read_text()), "popdist")}
    assert used <= POPDIST


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_chained_option_setters_exist(path: Path) -> None:
    """PopTorch's methods are the only camelCase attributes of the application."""
    members = (
        {m for entry in POPTORCH.values() for m in entry.get("members", {})} | STANDARD_LIBRARY | POPDIST
    )
    members |= {name.rsplit(".", 1)[1] for name in POPTORCH}
    used = {n.attr for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Attribute)}
    assert not {n for n in used if re.fullmatch(r"[a-z]+[A-Z]\w*", n)} - members


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_uses_only_names_of_torch_2_0_1(path: Path) -> None:
    tree = ast.parse(path.read_text())
    aliases = {
        "nn": "torch.nn",
        "F": "torch.nn.functional",
        "functional": "torch.nn.functional",
        "torch": "torch",
    }
    problems = []
    for alias, module in aliases.items():
        for name, node in chains(tree, alias):
            full = module + name[len(alias) :]
            owner = max((m for m in TORCH if full.startswith(m + ".")), key=len)
            member = full[len(owner) + 1 :].split(".")[0]
            if member not in TORCH[owner]:
                problems.append(f"{path.name}:{node.lineno} {full} is newer than torch 2.0.1")  # type: ignore[attr-defined]
    assert not problems


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_uses_no_tensor_method_newer_than_torch_2_0_1(path: Path) -> None:
    newer = (
        {n for n in dir(torch.Tensor) if not n.startswith("_")}
        - TORCH["torch.Tensor"]
        - SHARED_WITH_OTHER_TYPES
    )
    used = {n.attr for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Attribute)}
    assert not used & newer
