"""Parameter groups and optimizer settings as PopTorch takes them; schedules against Hugging Face's."""

from __future__ import annotations

import dataclasses

import poptorch
import pytest
import torch
import transformers

from bert_ipu.config import ModelConfig, OptimConfig
from bert_ipu.model import BertForPreTraining
from bert_ipu.optim import learning_rate, make_optimizer, parameter_groups, set_learning_rate

TINY = ModelConfig(vocab_size=30, hidden_size=8, num_hidden_layers=1, num_attention_heads=2)


def oracle_rates(schedule: str, warmup: int, total: int, lr: float) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    if schedule == "linear":
        scheduler = transformers.get_linear_schedule_with_warmup(optimizer, warmup, total)
    else:
        scheduler = transformers.get_constant_schedule_with_warmup(optimizer, warmup)
    rates = []
    for _ in range(total):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize("schedule", ["linear", "constant"])
@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.28, 1.0])
def test_schedules_equal_hugging_face(schedule: str, fraction: float) -> None:
    optim = OptimConfig(lr=0.006, schedule=schedule, warmup_fraction=fraction)
    rates = [learning_rate(optim, step, 57) for step in range(57)]
    assert rates == pytest.approx(oracle_rates(schedule, int(fraction * 57), 57, 0.006), rel=1e-12)


def test_only_weights_decay_and_biases_are_not_scaled() -> None:
    model = BertForPreTraining(TINY)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    biases, gains, weights = parameter_groups(model, OptimConfig(name="lamb", weight_decay=0.01))
    assert {names[id(p)].rsplit(".", 1)[-1] for p in biases["params"]} == {"bias"}
    assert all("LayerNorm.weight" in names[id(p)] for p in gains["params"])
    assert [group["weight_decay"] for group in (biases, gains, weights)] == [0.0, 0.0, 0.01]
    assert biases["max_weight_norm"] == 0.0 and "max_weight_norm" not in weights
    assert sum(len(group["params"]) for group in (biases, gains, weights)) == len(names)


@pytest.mark.parametrize(("name", "kind"), [
    ("sgd", poptorch.optim.SGD), ("adamw", poptorch.optim.AdamW), ("lamb", poptorch.optim.LAMB)])
def test_settings_reach_the_optimizer(name: str, kind: type) -> None:
    optim = OptimConfig(name=name, lr=0.5, loss_scaling=64.0, bias_correction=False, momentum_type="float16")
    optimizer = make_optimizer(BertForPreTraining(TINY), optim)
    assert type(optimizer) is kind
    assert (optimizer.loss_scaling, optimizer.accum_type) == (64.0, torch.float16)
    if name == "sgd":
        assert optimizer.velocity_accum_type == torch.float16
    else:
        assert optimizer.bias_correction is False
        assert optimizer.first_order_momentum_accum_type == torch.float16
        assert optimizer.second_order_momentum_accum_type == torch.float32
    assert optimizer.variable_attrs.isConstant("weight_decay")
    assert not optimizer.variable_attrs.isConstant("lr")
    set_learning_rate(optimizer, 0.25)
    assert {group["lr"] for group in optimizer.param_groups} == {0.25}


def test_float32_accumulation() -> None:
    optim = dataclasses.replace(OptimConfig(), accumulation_type="float32")
    assert make_optimizer(BertForPreTraining(TINY), optim).accum_type == torch.float32
