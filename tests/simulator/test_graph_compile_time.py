"""Compiling without weights: the size of BERT-Large in seconds, on fake parameters."""

from __future__ import annotations

import time

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from bert_ipu.simulator.compiler import compile_program
from bert_ipu.simulator.graph.ir import Reduction
from bert_ipu.simulator.graph.optimizer_spec import HyperParameter, OptimizerSpec
from bert_ipu.simulator.graph.request import CompileRequest

LAYERS, HIDDEN, HEADS, VOCABULARY, SEQUENCE = 24, 1024, 16, 30522, 512


class Encoder(nn.Module):
    """BERT-Large's shapes, of torch's own layers, with a tied masked-language-model head."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.positions = nn.Embedding(VOCABULARY, HIDDEN), nn.Embedding(SEQUENCE, HIDDEN)
        layer = nn.TransformerEncoderLayer(HIDDEN, HEADS, 4 * HIDDEN, activation="gelu", batch_first=True)
        self.layers = nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)

    def forward(self, ids: Tensor, labels: Tensor) -> Tensor:
        positions = torch.arange(SEQUENCE, device=ids.device)
        hidden = self.layers(self.words(ids) + self.positions(positions))
        return F.cross_entropy(F.linear(hidden, self.words.weight).flatten(0, 1), labels.flatten().long())


@pytest.mark.slow
def test_bert_large_compiles_in_under_20_seconds() -> None:
    with FakeTensorMode():
        module = Encoder()
    values = {"learningRate": 1e-3, "beta1": 0.9, "beta2": 0.999, "eps": 1e-6, "weightDecay": 0.01}
    group = {name: HyperParameter(value, name != "learningRate") for name, value in values.items()}
    names = dict.fromkeys((name for name, _ in module.named_parameters()), 0)
    spec = OptimizerSpec("LAMB", ({**group, "maxWeightNorm": HyperParameter(65500.0)},), names)
    inputs = (torch.zeros(1, SEQUENCE, dtype=torch.int32),) * 2
    start = time.perf_counter()
    program = compile_program(
        CompileRequest(
            module.forward, module, inputs, training=True, optimizer=spec, reduction=Reduction(64, 4)
        )
    )
    seconds = time.perf_counter() - start
    print(f"{len(program.operators())} operators in {seconds:.1f} s")
    assert len(program.operators()) > 100 * LAYERS
    assert seconds < 20
