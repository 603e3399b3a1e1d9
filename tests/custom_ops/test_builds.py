"""The ops build with CMake as they would for the SDK, and are clean under the sanitizers."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from own_ops import FOLDER, STRICT

from bert_ipu.simulator.native.build import CSRC, build_runtime, cache_root, compile_library, compiler

pytestmark = [pytest.mark.slow, pytest.mark.cpp]

TESTS = Path(__file__).resolve().parents[1]


def test_cmake_builds_the_runtime_and_the_ops(tmp_path: Path) -> None:
    if shutil.which("cmake") is None:
        pytest.skip("cmake is not installed")
    runtime, ops = tmp_path / "popemu", tmp_path / "ops"
    for command in (
        ["cmake", "-S", CSRC, "-B", runtime],
        ["cmake", "--build", runtime, "-j2"],
        ["cmake", "-S", FOLDER, "-B", ops, f"-DPOPLAR_DIR={runtime}", f"-DPOPART_DIR={runtime}"],
        ["cmake", "--build", ops, "-j2"],
    ):
        subprocess.run([str(word) for word in command], check=True)
    assert sorted(p.name for p in ops.glob("lib*.so")) == [
        "libdropout_removal.so",
        "libgroup_pattern.so",
        "libsparse_sgd.so",
    ]


def test_building_the_ops_from_clean_takes_less_than_90_seconds(tmp_path: Path) -> None:
    build_runtime()
    environment = {**os.environ, "PYTHONPATH": str(TESTS.parent)}
    script = (
        "from pathlib import Path; from bert_ipu.simulator.native.build import compile_library\n"
        f"for source in sorted(Path({str(FOLDER)!r}).glob('*/*.cpp')):\n"
        f"    compile_library([source], Path({str(tmp_path)!r}) / (source.stem + '.so'))\n"
    )
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-c", script], check=True, env=environment)
    assert time.perf_counter() - begin < 90


def test_sanitizers_find_nothing() -> None:
    """Runs this folder's and the API's fast tests on a runtime built with both sanitizers."""
    # GCC warns of its own <regex> where the sanitizers keep it from seeing through it.
    warnings = "-Wno-maybe-uninitialized"
    flags = f"-fsanitize=address,undefined -fno-sanitize=vptr -fno-sanitize-recover=undefined -g {warnings}"
    find = [compiler(), "-print-file-name=libasan.so"]
    libasan = subprocess.run(find, capture_output=True, text=True, check=True).stdout.strip()
    environment = {
        **os.environ,
        "BERT_IPU_NATIVE_FLAGS": flags,
        "BERT_IPU_BUILD_DIR": str(cache_root() / "sanitized"),
        "LD_PRELOAD": libasan,
        "ASAN_OPTIONS": "detect_leaks=0",
    }
    skipped = "not microseconds and not overrun and not codelets_that and not crash"
    simulator = TESTS / "simulator"
    tests = [simulator / "test_custom_ops.py", simulator / "test_custom_op_training.py", TESTS / "custom_ops"]
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-x", "--timeout", "1200", *map(str, tests), "-k", skipped],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]


@pytest.mark.parametrize("name", ["group_pattern", "sparse_sgd", "dropout_removal"])
def test_our_ops_compile_without_warnings(name: str, tmp_path: Path) -> None:
    compile_library([FOLDER / name / f"{name}.cpp"], tmp_path / f"lib{name}.so", flags=STRICT)
