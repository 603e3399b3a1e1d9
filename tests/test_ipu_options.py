"""Settings as poptorch.Options hold them; Options' own toDict is the witness."""

from __future__ import annotations

import dataclasses
from typing import Any

import poptorch

from bert_ipu.config import IpuConfig, OptimConfig, PretrainConfig, load_config
from bert_ipu.ipu_options import evaluation_options, training_options


def test_training_options_of_a_named_configuration() -> None:
    config = load_config(PretrainConfig, "pretrain_large_128_ALS")
    options = training_options(config)
    assert (options.replication_factor, options.device_iterations) == (4, 1)
    assert options.Training.gradient_accumulation == 2048
    assert options.output_mode == poptorch.OutputMode.Sum
    assert options.available_memory_proportion == {0: 0.13, 1: 0.20, 2: 0.20, 3: 0.20}
    assert options.random_seed == config.train.seed
    popart: dict[str, Any] = options._Popart.options
    assert popart["automaticLossScalingSettings.enabled"] is True
    assert popart["accumulateOuterFragmentSettings.schedule"] == 3


def test_evaluation_keeps_placement_and_returns_everything() -> None:
    config = PretrainConfig(ipu=dataclasses.replace(IpuConfig(), replication_factor=2))
    options = evaluation_options(config, device_iterations=5)
    assert (options.replication_factor, options.device_iterations) == (2, 5)
    assert options.Training.gradient_accumulation == 1
    assert options.output_mode == poptorch.OutputMode.All


def test_float32_neither_rounds_at_random_nor_halves_partials() -> None:
    base = PretrainConfig(optim=OptimConfig())
    half = training_options(base)
    single = training_options(dataclasses.replace(base, ipu=IpuConfig(precision="float32")))
    assert half._Popart.options != single._Popart.options
    changed = {key: value for key, value in half._Popart.options.items()
               if single._Popart.options.get(key) != value}
    assert set(changed) >= {"partialsTypeMatMuls"}
