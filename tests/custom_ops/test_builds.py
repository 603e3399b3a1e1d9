"""The ops build with CMake as they would for the SDK, and are clean under the sanitizers."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from own_ops import FOLDER, STRICT

from bert_ipu.simulator.native.build import (
    CSRC,
    build_runtime,
    cache_root,
    cmake_packages,
    compile_library,
    compiler,
)

pytestmark = pytest.mark.cpp

TESTS = Path(__file__).resolve().parents[1]


OPS = ["libdropout_removal.so", "libgroup_pattern.so", "libsparse_sgd.so"]


def run_cmake(*commands: list[object]) -> None:
    if shutil.which("cmake") is None:
        pytest.skip("cmake is not installed")
    for command in commands:
        subprocess.run(["cmake", *map(str, command)], check=True, capture_output=True)


def test_cmake_builds_the_ops_on_the_runtime_that_is_there(tmp_path: Path) -> None:
    folder = cmake_packages()
    run_cmake(
        ["-S", FOLDER, "-B", tmp_path, f"-DPOPLAR_DIR={folder}", f"-DPOPART_DIR={folder}"],
        ["--build", tmp_path],
    )
    assert sorted(p.name for p in tmp_path.glob("lib*.so")) == OPS


@pytest.mark.slow
def test_cmake_builds_the_runtime_and_the_ops(tmp_path: Path) -> None:
    runtime, ops = tmp_path / "popemu", tmp_path / "ops"
    run_cmake(
        ["-S", CSRC, "-B", runtime],
        ["--build", runtime, "-j2"],
        ["-S", FOLDER, "-B", ops, f"-DPOPLAR_DIR={runtime}", f"-DPOPART_DIR={runtime}"],
        ["--build", ops, "-j2"],
    )
    assert sorted(p.name for p in ops.glob("lib*.so")) == OPS
    script = (
        f"import ctypes; ctypes.cdll.LoadLibrary({str(ops / OPS[0])!r})\n"
        "from bert_ipu.simulator.custom_ops import registered_patterns\n"
        "assert 'RemoveInferenceDropout' in registered_patterns()\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(TESTS.parent)}
    subprocess.run([sys.executable, "-c", script], check=True, env=environment)


@pytest.mark.slow
def test_building_the_ops_from_clean_takes_less_than_90_seconds(tmp_path: Path) -> None:
    """Of processor time, so that it holds on one core and does not depend on what else runs."""
    build_runtime()
    before = os.times()
    for source in sorted(FOLDER.glob("*/*.cpp")):
        compile_library([source], tmp_path / f"{source.stem}.so")
    after = os.times()
    spent = (after.children_user - before.children_user) + (after.children_system - before.children_system)
    print(f"{spent:.1f} s")
    assert spent < 90


@pytest.mark.slow
def test_sanitizers_find_nothing(tmp_path: Path) -> None:
    """Runs this folder's and the API's fast tests on a runtime built with both sanitizers."""
    # Not optimised: GCC takes minutes to optimise what the sanitizers add to <regex>, and then warns of it.
    flags = "-fsanitize=address,undefined -fno-sanitize=vptr -fno-sanitize-recover=undefined -O0"
    # ASan catches exceptions of libstdc++, which Python itself does not load.
    preloaded = [
        subprocess.run(
            [compiler(), f"-print-file-name={name}"], capture_output=True, text=True, check=True
        ).stdout.strip()
        for name in ("libasan.so", "libstdc++.so")
    ]
    environment = {
        **os.environ,
        "BERT_IPU_NATIVE_FLAGS": flags,
        "BERT_IPU_BUILD_DIR": str(cache_root() / "sanitized"),
        "LD_PRELOAD": " ".join(preloaded),
        # Into files: what a process that dies says is lost in pytest's capture.
        "ASAN_OPTIONS": f"detect_leaks=0:log_path={tmp_path}/asan",
        "UBSAN_OPTIONS": f"print_stacktrace=1:log_path={tmp_path}/ubsan",
    }
    # Crashes on purpose, what the compiler of codelets says, CMake's own flags, and timings.
    skipped = "not microseconds and not overrun and not codelets_that and not crash and not cmake"
    simulator = TESTS / "simulator"
    tests = [simulator / "test_custom_ops.py", simulator / "test_custom_op_training.py", TESTS / "custom_ops"]
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-x", "--timeout", "1200", *map(str, tests), "-k", skipped],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    found = "".join(log.read_text()[:4000] for log in sorted(tmp_path.glob("*san*")))
    assert result.returncode == 0, found + result.stdout[-4000:] + result.stderr[-4000:]
    assert found == ""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["group_pattern", "sparse_sgd", "dropout_removal"])
def test_our_ops_compile_without_warnings(name: str, tmp_path: Path) -> None:
    compile_library([FOLDER / name / f"{name}.cpp"], tmp_path / f"lib{name}.so", flags=STRICT)


@pytest.mark.slow
def test_every_header_stands_alone_and_is_clean_cxx14(tmp_path: Path) -> None:
    """Each by itself, so that no source depends on the order of its includes."""
    include = CSRC / "include"
    headers = sorted(header.relative_to(include) for header in include.rglob("*.hpp"))
    assert len(headers) > 100

    def refusal(header: Path) -> str:
        source = tmp_path / f"{'_'.join(header.with_suffix('').parts)}.cpp"
        source.write_text(f"#include <{header}>\n#include <{header}>\n")
        command = [compiler(), *STRICT, "-fsyntax-only", f"-I{include}", str(source)]
        return subprocess.run(command, capture_output=True, text=True, check=False).stderr

    with ThreadPoolExecutor(2) as pool:
        refused = {str(header): text for header, text in zip(headers, pool.map(refusal, headers)) if text}
    assert refused == {}
