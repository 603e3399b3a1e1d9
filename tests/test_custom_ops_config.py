"""The settings of our custom ops: what each switches, what is refused, what a run says and computes with them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import poptorch
import pytest
import torch
from safetensors.torch import load_file

import run_pretraining
from bert_ipu.backend import Backend
from bert_ipu.config import CustomOpsConfig, PretrainConfig, load_config
from bert_ipu.custom_ops import TILES, load, pattern_switches, report, savings
from bert_ipu.distributed import join_world
from bert_ipu.errors import ConfigError
from bert_ipu.ipu_options import evaluation_options, training_options
from bert_ipu.pipeline import pretraining_model
from bert_ipu.train import Evaluator, GeneratedRows

COMBINED = ["optim.name=sgd", "optim.combined_accumulation=true"]


def test_only_loaded_libraries_are_switched() -> None:
    assert pattern_switches(CustomOpsConfig()) == {}
    on = CustomOpsConfig(group_pattern=True, sparse_sgd=True, dropout_removal=True)
    assert pattern_switches(on) == {
        "GroupPattern": True,
        "SparseSGDPattern": True,
        "RemoveInferenceDropout": True,
        "DisableAttnDropoutBwd": False,
    }


def test_switches_reach_the_options() -> None:
    config = load_config(PretrainConfig, "unit_test", ["custom_ops.dropout_removal=true"])
    for options in (training_options(config), evaluation_options(config, 1)):
        assert options._Popart.options["patterns"]["RemoveInferenceDropout"] is True
        assert options._Popart.options["patterns"]["DisableAttnDropoutBwd"] is False


@pytest.mark.parametrize(
    ("overrides", "part"),
    [
        (["custom_ops.group_pattern=true"], "group_pattern = true matches only optim.name = sgd with"),
        (["custom_ops.sparse_sgd=true"], "sparse_sgd = true matches only optim.name = sgd with"),
        (["optim.combined_accumulation=true"], "is for optim.name = sgd, which is adamw"),
    ],
)
def test_settings_that_do_not_go_together(overrides: list[str], part: str) -> None:
    with pytest.raises(ConfigError, match=part):
        load_config(PretrainConfig, "unit_test", overrides)


def test_a_library_that_is_not_built_for_the_sdk_is_named_with_its_command() -> None:
    with pytest.raises(ConfigError, match="cmake -S custom_ops -B build/custom_ops_sdk"):
        load(CustomOpsConfig(sparse_sgd=True), Backend("ipu", ""))


def test_an_executor_that_tells_nothing_is_said_so() -> None:
    assert report([], object()) == []
    assert "POPART_LOG_LEVEL=DEBUG" in report(["sparse_sgd"], object())[0]


class Summary(NamedTuple):
    output: tuple[int, ...]
    dtype: torch.dtype


class Change(NamedTuple):
    pattern: str
    removed: tuple[Summary, ...]


def test_savings_by_the_published_formulas() -> None:
    """Worked by hand: 30,522 x 768 floats are 15,925 on a tile, 2,655 of a worker, 1,328 vectors of two."""
    table = Change("SparseSGDPattern", (Summary((30522, 768), torch.float32),))
    assert savings(table) == (93_763_584, 6 * (29 + 3 * 1328) + 11)
    on_tile = math.ceil(16 * 128 * 128 / TILES)
    dropout = Change("DisableAttnDropoutBwd", (Summary((16, 128, 128), torch.float16),))
    assert savings(dropout) == (16 * 128 * 128 * 2, 6 + 24 * 6 + 2 * math.ceil(on_tile / 4))


@pytest.mark.cpp
def test_an_evaluation_says_what_was_removed(capsys: pytest.CaptureFixture[str]) -> None:
    """PopTorch records no dropout of a model in eval(), as the program's is; one left in training has them all."""
    overrides = ["custom_ops.dropout_removal=true", "model.attention_probs_dropout_prob=0.1"]
    config = load_config(PretrainConfig, "unit_test", overrides)
    libraries = load(config.custom_ops, Backend("simulator", ""))
    model = pretraining_model(config)
    evaluator = Evaluator(config, model, join_world(config.ipu.replication_factor))
    batch = GeneratedRows(config.data, config.model.vocab_size, evaluator.rows, seed=0).batch(
        range(evaluator.rows))
    list(evaluator.outputs([batch]))
    assert "evaluation: dropout_removal: nothing matched" in capsys.readouterr().out

    executor = poptorch.inferenceModel(model.train(), evaluation_options(config, config.forward_stages))
    executor.compile(*batch)
    dropouts = 1 + 3 * config.model.num_hidden_layers  # of the embeddings; attention and both halves of a layer
    (line,) = report(libraries, executor, "evaluation")
    assert f"evaluation: RemoveInferenceDropout matched {dropouts} Dropout: saves" in line


@pytest.mark.cpp
def test_a_run_says_what_matched_and_trains_the_same_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Grouping changes no bit; on sparse accumulation in float32 only the order of additions may show."""
    common = ["--config", "unit_test", "recorder.progress_bar=false", "train.steps=2", "ipu.device_iterations=1",
              "ipu.precision=float32", "optim.lr=0.01", *COMBINED]  # fmt: skip
    weights = {}
    for name in ("none", "group_pattern", "sparse_sgd"):
        folder = tmp_path / name
        on = [] if name == "none" else [f"custom_ops.{name}=true"]
        # One after the other: a loaded library stays, so its pattern is switched off where it is not wanted.
        assert run_pretraining.main([*common, f"train.output_dir={folder}", *on]) == 0
        said = capsys.readouterr().out
        (checkpoint,) = (folder / "checkpoints").glob("step_*")
        weights[name] = load_file(checkpoint / "model.safetensors")
        if name == "group_pattern":
            # 3 layers of 6 weights, the pooler, the two heads' own; not the tied decoder.
            assert "training: GroupPattern matched 21 SGD1VarUpdate" in said
        if name == "sparse_sgd":
            assert "SparseSGDPattern matched 2 GatherGrad" in said  # positions and token types
            assert "SparseSGDPattern matched 1 EmbeddingGrad" in said  # words, which have a padding row
    for key, value in weights["none"].items():
        assert torch.equal(weights["group_pattern"][key], value), key
        torch.testing.assert_close(weights["sparse_sgd"][key], value, rtol=1e-4, atol=1e-6)
