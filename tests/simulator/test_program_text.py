"""The text of a compiled program, as a user reads it in the log."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor, nn

from bert_ipu import simulator
from bert_ipu.simulator import poptorch
from bert_ipu.simulator.params import SimulatorParams


class TwoStages(nn.Module):
    """A perceptron with its second layer and loss on the second IPU."""

    def __init__(self) -> None:
        super().__init__()
        self.first = poptorch.BeginBlock(nn.Linear(4, 8), "first", ipu_id=0)
        self.second = poptorch.BeginBlock(nn.Linear(8, 3), "second", ipu_id=1)

    def forward(self, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        scores = self.second(torch.tanh(self.first(x)))
        return scores, nn.functional.cross_entropy(scores, labels)


def compiled_text(capfd: pytest.CaptureFixture[str], device: str) -> str:
    simulator.install(SimulatorParams(device=device))
    options = poptorch.Options()
    options.Training.gradientAccumulation(3)
    model = TwoStages()
    optimizer = poptorch.optim.AdamW(model.parameters(), lr=0.1)
    poptorch.setLogLevel("TRACE")
    try:
        training = poptorch.trainingModel(model, options, optimizer)
        training.compile(torch.zeros(15, 4), torch.zeros(15, dtype=torch.int32))
    finally:
        poptorch.setLogLevel("WARN")
    return capfd.readouterr().err


def test_what_is_compiled_is_shown_with_its_place_and_its_line(capfd: pytest.CaptureFixture[str]) -> None:
    held, text = compiled_text(capfd, "null").split("Compiled program:\n")
    # Two layers of 40 and 27 elements.
    assert "IPU 0 holds parameter 40 (160 bytes)" in held and "IPU 1 holds parameter 27 (108 bytes)" in held
    sections = re.split(r"^(?=\w)", text, flags=re.MULTILINE)
    by_title = {section.split("\n")[0]: section for section in sections}
    forward = by_title["forward, for each micro-batch"]
    assert forward.index("IPU 0, stage 0") < forward.index("tanh") < forward.index("IPU 1, stage 1")
    assert re.search(
        r"linear_1: float32\[5, 3\] = linear\(tanh, second\.weight, second\.bias\) +# second, \S+\.py:\d+",
        forward,
    )
    assert "float32[4, 8]" not in forward and "IPU 1, stage 1" in by_title["backward, for each micro-batch"]
    assert "accumulate" in by_title["accumulation, for each micro-batch"]
    assert "adam_var_update" in by_title["weight update, after the last micro-batch"]
    assert "def micro_batch" not in text, "nothing runs on the null device"


def test_the_code_that_runs_is_shown_with_the_users_lines(capfd: pytest.CaptureFixture[str]) -> None:
    text = compiled_text(capfd, "cpu")
    micro_batch, update = text.split("Code of the micro-batch:\n")[1].split("Code of the weight update:\n")
    assert re.search(r"tanh\(\w+\)  # \S*test_program_text\.py:\d+", micro_batch)
    assert "def update(" in update


def test_loops_and_branches_are_shown_with_their_bodies() -> None:
    def forward(x: Tensor) -> Tensor:
        (y,) = poptorch.for_loop(3, lambda a: [a * 2 + x], [x])
        return poptorch.cond(x.sum() > 0, lambda a: a.sin(), [y], lambda a: a.cos(), [y])[0]

    model = poptorch.inferenceModel(forward)
    model.compile(torch.ones(2))
    lines = [line.partition("  #")[0].strip() for line in model._debugGetPopartIR().splitlines()]
    text = "\n".join(lines)
    assert "0x" not in text, "no addresses"
    loop = text[text.index("for_loop: ") :]
    assert loop.index("for_loop(") < loop.index("= mul(") < loop.index("= add(") < loop.index("return add")
    then, other = text[text.index("then(") :].split("else(")
    assert "= sin(" in then and "= cos(" not in then
    assert "= cos(" in other and "= sin(" not in other
