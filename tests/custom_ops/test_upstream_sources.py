"""Graphcore's own custom ops, unmodified, compiled with plain g++ and run.

Needs clones: BERT_IPU_UPSTREAM names a folder with `poptorch` and `examples` in it, or with links to their
git directories; of examples the commits e41903b and 95ec14e are used.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from own_ops import STRICT, GraphBuilder, only

from bert_ipu.simulator.custom_ops import CompiledOp, GradSource, load_library
from bert_ipu.simulator.native.build import compile_library
from bert_ipu.simulator.native.patterns import PatternEdit

pytestmark = [pytest.mark.slow, pytest.mark.cpp]

BERT = "applications/popart/bert/custom_ops"
# Sources of 2020 override methods whose types changed in SDK 2.
SDK1 = ("-std=c++14", "-DPOPEMU_SDK=100")
POPTORCH = (
    "add_scalar",
    "add_scalar_vec",
    "add_vec_scalar_mul",
    "cube",
    "leaky_relu",
    "many_attribute",
    "reduce",
    "three_input_reduce",
)

# embeddingGather.cpp needs Boost; what the group pattern needs of it are the classes' virtual functions.
EMBEDDING_GATHER = """
#include "embeddingGather.hpp"
EmbeddingGatherOp::EmbeddingGatherOp(const popart::OperatorIdentifier &opid, const popart::Op::Settings &s,
                                     const MatMulSplit m, const std::string id)
    : popart::Op(opid, s), split(m), embedding_tensor_id(id) {}
std::unique_ptr<popart::Op> EmbeddingGatherOp::clone() const { return nullptr; }
std::vector<std::unique_ptr<popart::Op>> EmbeddingGatherOp::getGradOps() { return {}; }
void EmbeddingGatherOp::setup() {}
std::unique_ptr<popart::Op> EmbeddingGatherGradOp::clone() const { return nullptr; }
const std::vector<popart::GradInOutMapper> &EmbeddingGatherGradOp::gradInputInfo() const { throw 0; }
const std::map<int, int> &EmbeddingGatherGradOp::gradOutToNonGradIn() const { throw 0; }
void EmbeddingGatherGradOp::setup() {}
"""


def upstream(repository: str, commit: str, folder: str, target: Path) -> Path:
    """Write the files of one folder of a commit; skips the test when there is no clone."""
    root = os.environ.get("BERT_IPU_UPSTREAM")
    if root is None:
        pytest.skip("BERT_IPU_UPSTREAM does not name a folder with clones of graphcore/poptorch and examples")
    git = ["git", "-C", str(Path(root) / repository)]
    names = subprocess.run(
        [*git, "ls-tree", "--name-only", f"{commit}:{folder}"], capture_output=True, text=True, check=True
    ).stdout.split()
    for name in names:
        if name.endswith((".cpp", ".hpp", ".h")):
            content = subprocess.run(
                [*git, "show", f"{commit}:{folder}/{name}"], capture_output=True, check=True
            )
            (target / name).write_bytes(content.stdout)
    return target


def edits_by(builder: GraphBuilder, pattern: str) -> list[PatternEdit]:
    """What a pattern that is off by default changes after the optimizer is decomposed."""
    return builder.graph.run_patterns("optimizer", {**only(pattern), pattern: True})


def test_poptorch_test_ops(tmp_path: Path) -> None:
    sources = upstream("poptorch", "HEAD", "tests/custom_ops", tmp_path)
    for name in POPTORCH:
        library = compile_library(
            [sources / f"custom_{name}_op.cpp"], tmp_path / f"lib{name}.so", flags=STRICT
        )
        load_library(library)
    f32 = torch.float32
    cube = CompiledOp("com.acme", "Cube", 1, [((1, 8), f32)] * 2)
    outputs = cube.run([torch.full((1, 8), 2.0), torch.full((1, 8), 4.0)])
    assert [out.unique().tolist() for out in outputs] == [[12.0], [8.0]]
    (grad,) = cube.gradient()
    assert grad.sources == (GradSource("grad_out", 0), GradSource("out", 1))
    # 3 * grad^2 * out: upstream's inputs are swapped against gradInputInfo; the device computes the same.
    assert grad.run([torch.ones(1, 8), outputs[1]])[0].unique().tolist() == [24.0]
    x = torch.tensor([-1.0, -2.0, 3.0])
    relu = CompiledOp("com.acme", "LeakyRelu", 1, [((3,), f32)], {"alpha": 0.1})
    torch.testing.assert_close(relu.run([x])[0], torch.nn.functional.leaky_relu(x, 0.1))
    assert x.tolist() == [-1.0, -2.0, 3.0]
    torch.testing.assert_close(relu.gradient()[0].run([torch.ones(3), x])[0], torch.tensor([0.1, 0.1, 1.0]))


def test_sparse_sgd_of_2020(tmp_path: Path) -> None:
    sources = upstream("examples", "e41903b", BERT, tmp_path)
    load_library(
        compile_library([sources / "sparse_sgd1_pattern.cpp"], tmp_path / "libsparse.so", flags=SDK1)
    )
    builder = GraphBuilder()
    builder.tensor("accumulator", (5, 3), "variable")
    builder.tensor("dy", (4, 3))
    builder.tensor("ids", (4,), "stream", torch.int32)
    builder.op("GatherGrad", ["dy", "ids"], "table", (5, 3), axis=0)
    builder.op("SGD1Accumulate", ["accumulator", "table"], "updated", (5, 3), dpsf1=0.5)
    edits = edits_by(builder, "SparseSGD1AccumulatePattern")
    assert [edit.pattern for edit in edits] == ["SparseSGD1AccumulatePattern"]
    (op,) = builder.graph.ops()
    assert (op.type, op.inputs) == ("SparseSGD1Accumulate", {0: "accumulator", 1: "dy", 3: "ids"})
    rows = torch.randn(4, 3)
    out = builder.graph.compile(op.id).run(
        [torch.zeros(5, 3), rows, torch.tensor([1, 1, -1, 4], dtype=torch.int32)]
    )
    expected = torch.zeros(5, 3).index_add(0, torch.tensor([1, 1, 4]), 0.5 * rows[[0, 1, 3]])
    torch.testing.assert_close(out[0], expected)


def test_group_pattern_of_2020(tmp_path: Path) -> None:
    sources = upstream("examples", "e41903b", BERT, tmp_path)
    (sources / "gather.cpp").write_text(EMBEDDING_GATHER)
    parts = [sources / "attempt_regroup_pattern.cpp", sources / "gather.cpp"]
    load_library(compile_library(parts, tmp_path / "libgroup.so", flags=SDK1))
    builder = GraphBuilder()
    for name in ("weight", "velocity"):
        builder.tensor(name, (4, 4), "variable")
    for name in ("x", "dy"):
        builder.tensor(name, (4, 4))
    builder.op("MatMulRhsGrad", ["dy", "x"], "gradient", (4, 4))
    builder.op("SGD1Accumulate", ["velocity", "gradient"], "accumulated", (4, 4), dpsf1=0.5)
    builder.op("SGD1VarUpdate", ["weight", "accumulated"], "updated", (4, 4), slr1=0.1)
    assert len(edits_by(builder, "AttemptRegroupPattern")) == 1
    (op,) = [op for op in builder.graph.ops() if op.type == "AttemptRegroup"]
    assert (op.inputs, op.outputs) == ({0: "accumulated", 1: "weight"}, {0: "accumulated_regrouped"})
    gradient = torch.randn(4, 4)
    assert torch.equal(builder.graph.compile(op.id).run([gradient, torch.zeros(4, 4)])[0], gradient)
    assert edits_by(builder, "AttemptRegroupPattern") == []


@pytest.mark.parametrize("commit", ["e41903b", "95ec14e"])
def test_attention_dropout(commit: str, tmp_path: Path) -> None:
    script = f"""
import torch
from pathlib import Path
from own_ops import GraphBuilder
from bert_ipu.simulator.custom_ops import CompiledOp, load_library
from bert_ipu.simulator.native.build import compile_library
source = Path({str(tmp_path)!r}) / "disable_attn_dropout_bwd_pattern.cpp"
load_library(compile_library([source], source.with_name("libdropout.so"), flags={SDK1!r}))
builder = GraphBuilder()
for name in ("dy", "v", "p"):
    builder.tensor(name, (2, 2))
builder.op("MatMulLhsGrad", ["dy", "v"], "product", (2, 2))
builder.op("DropoutGrad", ["product"], "attention", (2, 2), ratio=0.1)
builder.op("SoftmaxGrad", ["attention", "p"], "scores", (2, 2))
builder.op("DropoutGrad", ["dy"], "hidden", (2, 2), ratio=0.1)
edits = builder.graph.run_patterns("backward")
assert [edit.pattern for edit in edits] == ["DisableAttnDropoutBwdPattern"], edits
assert builder.types() == ["DropoutGrad", "Identity", "MatMulLhsGrad", "SoftmaxGrad"]
x = torch.randn(3)
detach = CompiledOp("ai.graphcore", "Detach", 1, [((3,), torch.float32)], {{"pass_through_creation": 1}})
assert torch.equal(detach.run([x])[0], x) and detach.gradient() == []
"""
    upstream("examples", commit, BERT, tmp_path)
    run_alone(script)


def test_sparse_accumulate_never_applies(tmp_path: Path) -> None:
    """Upstream's condition `type != Add || type != DampenedAdd` always holds, so it changes nothing."""
    sources = upstream("examples", "95ec14e", BERT, tmp_path)
    load_library(
        compile_library(
            [sources / "sparse_accumulate_pattern.cpp"], tmp_path / "libaccumulate.so", flags=SDK1
        )
    )
    builder = GraphBuilder()
    builder.tensor("accumulator", (5, 3), "variable")
    builder.tensor("dy", (4, 3))
    builder.tensor("ids", (4,), "stream", torch.int32)
    builder.op("GatherGrad", ["dy", "ids"], "table", (5, 3), axis=0)
    builder.op("Accumulate", ["accumulator", "table"], "updated", (5, 3), accumulation_type="Add")
    assert edits_by(builder, "SparseAccumulatePattern") == []
    assert builder.types() == ["Accumulate", "GatherGrad"]


def run_alone(script: str) -> None:
    """In a process of its own: both commits define classes of the same name, and the first loaded wins."""
    here = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(here), str(here.parents[1])])}
    result = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
        timeout=600,
    )
    assert result.returncode == 0, result.stderr
