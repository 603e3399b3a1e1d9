"""The example of docs/custom-ops.md works word by word, from an empty folder."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.cpp]

PROJECT = Path(__file__).resolve().parents[2]


def blocks(language: str) -> list[str]:
    page = (PROJECT / "docs" / "custom-ops.md").read_text()
    return re.findall(rf"```{language}\n(.*?)```", page, flags=re.S)


def test_the_example_builds_and_trains(tmp_path: Path) -> None:
    (source,), (program,), (build, run) = blocks("cpp"), blocks("python"), blocks("sh")
    (tmp_path / "swish_op.cpp").write_text(source)
    (tmp_path / "train_swish.py").write_text(program)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PYTHONPATH": str(PROJECT), "PATH": path}
    strict = build.replace("-std=c++14", "-std=c++14 -Wall -Wextra -Werror")
    for command in (strict, run):
        result = subprocess.run(
            ["bash", "-c", command], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert result.returncode == 0, result.stderr
    losses = [float(value) for value in re.findall(r"loss ([\d.]+)", result.stdout)]
    assert len(losses) == 5 and losses[-1] < losses[0] / 2
