"""The check against the real headers finds what is not there."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
from own_ops import FOLDER

SCRIPT = FOLDER / "check_real_api.py"

HEADER = """
namespace popart {
class Op { public: virtual void setup(); virtual bool matches(Op *op) const = 0; int count(); };
}
"""

SOURCE = """
#include <popart/op.hpp>
#include <popart/missing.hpp>
class Mine : public popart::Op {
  void setup() override { helper(); }
  bool matches(popart::Op *op) const override { return op->count() && op->invented(); }
  void grow(popart::Op &op) const override { popart::Imagined x; }
};
"""


def test_missing_headers_names_overrides_and_members_are_found(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("check_real_api", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (tmp_path / "popart").mkdir()
    (tmp_path / "popart" / "op.hpp").write_text(HEADER)
    problems = module.RealApi([tmp_path]).problems(SOURCE)
    assert problems == [
        "no header popart/missing.hpp",
        "no name popart::Imagined",
        "no virtual grow(Op&)const",
        "no member invented",
    ]


def test_a_folder_that_is_no_clone_is_refused(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--popart", str(tmp_path), "--poplibs", str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "a clone of the right repository" in result.stderr


@pytest.mark.slow
def test_the_ops_use_only_the_real_api() -> None:
    """Needs BERT_IPU_UPSTREAM with working trees of graphcore/popart and graphcore/poplibs."""
    root = os.environ.get("BERT_IPU_UPSTREAM")
    if root is None or not (Path(root) / "popart" / "willow").is_dir():
        pytest.skip("BERT_IPU_UPSTREAM does not name a folder with working trees of popart and poplibs")
    command = [sys.executable, str(SCRIPT), "--popart", f"{root}/popart", "--poplibs", f"{root}/poplibs"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout
