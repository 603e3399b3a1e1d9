"""Limits that keep the code small enough to read, and the directions in which modules may import.

Raising a limit needs a commit of its own that says why.
"""

from __future__ import annotations

import ast
import re
import statistics
import subprocess
import sys
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "bert_ipu"

MAX_FILE_LINES = 600
MAX_MODEL_LINES = 350
MAX_PRETRAINING_LINES = 2500
MAX_FUNCTION_LINES = 60
MAX_MEDIAN_FUNCTION_LINES = 15
MAX_P95_FUNCTION_LINES = 40
BANNED_STEMS = {"utils", "util", "common", "helpers", "helper", "misc"}

# A module may import only from layers below its own.  Scripts stand above all of them.
LAYERS = [
    {"squad"},
    {"squad"},
    {"train"},
    {
        "pipeline",
        "ipu_options",
        "optim",
        "distributed",
        "pretraining_data",
        "squad_data",
        "custom_ops",
        "checkpoint",
        "recorder",
        "records_writer",
    },
    {"model", "backend", "records", "tfrecords", "tokenizer", "sampler", "squad_scoring"},
    {"batch", "config"},
    {"errors"},
]


def python_files(*folders: Path) -> list[Path]:
    return sorted(f for folder in folders for f in folder.rglob("*.py"))


def flat_modules() -> list[Path]:
    return sorted(f for f in PACKAGE.glob("*.py") if f.stem != "__init__")


def all_sources() -> list[Path]:
    return [*python_files(PACKAGE, ROOT / "data", ROOT / "custom_ops", ROOT / "bench"), *ROOT.glob("*.py")]


def docstring_lines(tree: ast.AST) -> set[int]:
    """Lines taken by docstrings and other bare string statements."""
    return {
        line
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
        for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }


def code_line_numbers(path: Path) -> set[int]:
    """Lines that hold code: no blanks, comments or docstrings."""
    skip = {
        tokenize.COMMENT,
        tokenize.NL,
        tokenize.NEWLINE,
        tokenize.INDENT,
        tokenize.DEDENT,
        tokenize.ENDMARKER,
        tokenize.ENCODING,
    }
    lines: set[int] = set()
    with path.open("rb") as file:
        for token in tokenize.tokenize(file.readline):
            if token.type not in skip:
                lines.update(range(token.start[0], token.end[0] + 1))
    return lines - docstring_lines(ast.parse(path.read_text()))


def function_lengths(path: Path) -> dict[str, int]:
    """Code lines of every function, the lines of functions inside it not counted twice."""
    lines = code_line_numbers(path)
    lengths: dict[str, int] = {}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            span = set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
            lengths[f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"] = len(span & lines)
    return lengths


def imported_modules(path: Path) -> set[str]:
    """Dotted names of everything the file imports, wherever it does so; relative imports made absolute."""
    package = path.relative_to(ROOT).with_suffix("").parts
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package[: -node.level] if node.level else ()
            module = ".".join([*parents, *([node.module] if node.module else [])])
            names.add(module)
            names.update(f"{module}.{alias.name}" for alias in node.names)
    return names


def own_flat_imports(path: Path) -> set[str]:
    """Flat modules of bert_ipu that the file imports."""
    known = {f.stem for f in flat_modules()}
    return {name.split(".")[1] for name in imported_modules(path) if name.startswith("bert_ipu.")} & known


@pytest.mark.parametrize("path", all_sources(), ids=lambda p: str(p.relative_to(ROOT)))
def test_file_is_short_enough(path: Path) -> None:
    limit = MAX_MODEL_LINES if path == PACKAGE / "model.py" else MAX_FILE_LINES
    assert len(code_line_numbers(path)) <= limit


def test_functions_are_short() -> None:
    lengths = {name: n for path in all_sources() for name, n in function_lengths(path).items()}
    too_long = {name: n for name, n in lengths.items() if n > MAX_FUNCTION_LINES}
    assert not too_long
    assert statistics.median(lengths.values()) <= MAX_MEDIAN_FUNCTION_LINES
    assert statistics.quantiles(lengths.values(), n=20)[-1] <= MAX_P95_FUNCTION_LINES


def test_no_module_is_named_for_nothing() -> None:
    assert not [p for p in all_sources() if p.stem.lower() in BANNED_STEMS]


@pytest.mark.parametrize("package", ["graph", "poptorch", "runtime"])
def test_the_simulators_packages_say_what_is_in_them(package: str) -> None:
    folder = PACKAGE / "simulator" / package
    contents = ast.get_docstring(ast.parse((folder / "__init__.py").read_text())) or ""
    modules = {path.stem for path in folder.glob("*.py")} - {"__init__"}
    assert modules == set(re.findall(r"`(\w+)`", contents))


def test_every_flat_module_has_a_layer() -> None:
    assert {f.stem for f in flat_modules()} <= set().union(*LAYERS)


@pytest.mark.parametrize("path", flat_modules(), ids=lambda p: p.stem)
def test_imports_point_downwards(path: Path) -> None:
    level = next(i for i, layer in enumerate(LAYERS) if path.stem in layer)
    allowed = set().union(*LAYERS[level:])
    assert own_flat_imports(path) <= allowed


def test_only_the_backend_names_the_simulator() -> None:
    naming = [f.stem for f in flat_modules() if any("simulator" in name for name in imported_modules(f))]
    assert naming in ([], ["backend"])


def test_simulator_stands_alone() -> None:
    for path in python_files(PACKAGE / "simulator"):
        own = {n for n in imported_modules(path) if n.startswith("bert_ipu")}
        assert all(n.startswith("bert_ipu.simulator") for n in own), path


def test_model_knows_no_device() -> None:
    assert not {
        n for n in imported_modules(PACKAGE / "model.py") if n.split(".")[0] in {"poptorch", "popdist"}
    }


def test_package_never_imports_data_scripts() -> None:
    for path in python_files(PACKAGE):
        assert not {n for n in imported_modules(path) if n.split(".")[0] == "data"}, path


def pretraining_closure() -> set[str]:
    """Flat modules that run_pretraining.py pulls in."""
    seen: set[str] = set()
    todo = own_flat_imports(ROOT / "run_pretraining.py")
    while todo:
        name = todo.pop()
        seen.add(name)
        todo |= own_flat_imports(PACKAGE / f"{name}.py") - seen
    return seen


def test_pretraining_stays_small() -> None:
    files = [ROOT / "run_pretraining.py", *(PACKAGE / f"{name}.py" for name in pretraining_closure())]
    assert sum(len(code_line_numbers(f)) for f in files) <= MAX_PRETRAINING_LINES


def test_flat_modules_are_valid_for_python_3_8() -> None:
    """The flat modules run on the SDK, whose last release ships Python 3.8."""
    files = [str(f) for f in [*flat_modules(), *ROOT.glob("run_*.py")]]
    checker = str(Path(sys.executable).with_name("vermin"))
    command = [checker, "-t=3.8-", "--violations", "--no-tips", "--backport", "dataclasses", *files]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout


def test_every_path_the_documents_name_exists() -> None:
    for document in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        for name in re.findall(r"`([\w./-]+\.(?:py|md|yaml|yml|cpp|hpp|txt|json))`", document.read_text()):
            if "/" in name and not name.startswith("../"):
                assert (ROOT / name).exists() or (PACKAGE / name).exists(), f"{document.name} names {name}"
